"""The JSON schema of the files that users write, for editors and for other programs."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from raystage.config.section import Section
from raystage.config.yaml_file import parse_value

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Generator(GenerateJsonSchema):
    """Without the titles that pydantic makes of the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema(root: type[Section], title: str) -> dict[str, Any]:
    """The schema of a file of the section `root`. Every file that raystage accepts is valid under it.

    The reverse does not hold: a JSON schema does not compare one key with another.
    """
    schema = root.model_json_schema(by_alias=True, mode="validation", schema_generator=_Generator)
    return {"$schema": DIALECT, **_cleaned(schema), "title": title}


def _cleaned(schema: Any) -> Any:
    """Descriptions on one line; defaults that can be written in a file; examples as values, not as YAML text."""
    if isinstance(schema, list):
        return [_cleaned(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    cleaned = {name: _cleaned(value) for name, value in schema.items()}
    if isinstance(cleaned.get("description"), str):
        cleaned["description"] = " ".join(cleaned["description"].split())
    if isinstance(cleaned.get("title"), str):
        del cleaned["title"]
    if not isinstance(cleaned.get("default", 0), str | int | float):
        del cleaned["default"]
    if isinstance(cleaned.get("examples"), list):
        cleaned["examples"] = [parse_value(example) for example in cleaned["examples"]]
    return cleaned
