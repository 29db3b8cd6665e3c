"""Everything a schedule can have wrong, and what is said of it: one line that names the file and the key as the
user wrote it, what was found and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from factories import write_documents
from raystage.config import yaml_file
from raystage.config.schedule import load
from raystage.errors import InputError
from raystage.models.families import FAMILIES
from raystage.planning.build import make_plan

ALL_BUT_LAST = ", ".join(list(FAMILIES)[:-1])
OTHERS = "transformers for any other architecture, with its config.json in model.config"

GOOD = """
name: tiny
data: {source: text, path: FOLDER/texts, validation_fraction: 0.5}
model: {hidden_size: 16, num_heads: 4, context_length: 8}
training: {workers: 2, global_batch_tokens: 64, lr_schedule: {warmup: 64, decay: 0.2}}
stages:
  - {name: small, model: {num_layers: 2}, until: {tokens: 640}}
  - {name: full, model: {num_layers: 4}, until: {tokens: 640}, grow: {operator: stack}}
baseline: {budgets: [640, 1280]}
"""

NUMBER = "expected a number such as 500000, 500K or 1.5B"
WHOLE = "expected a whole number such as 500000, 500K or 1.5B"
REAL = "expected a number such as 0.1 or 3e-4"
MAPPING = "expected a mapping of keys to values"
KEY_VALUE = "expected KEY=VALUE with a key such as stages[1].until.tokens"
TRIGGERS = (
    "expected one or more of tokens, samples, epochs, share, steps, flops, seconds, eval_loss, plateau, slope, mixing, "
    "any, all"
)
KNOWN_TOP = "known here: baseline, costs, data, init, length, model, name, objective, seed, seeds, stages, training"
TUNABLE = ", ".join(
    [f"training.optimizer.{name}" for name in ("name", "lr", "betas", "eps", "momentum", "weight_decay", "fused")]
    + ["training.global_batch_tokens"]
    + [f"training.lr_schedule.{name}" for name in ("warmup", "decay", "decay_shape", "min_lr_ratio")]
)

# How it was wrong, what was written, what is said. "file": the whole file. "change": the good file above with these
# values in it (a=1 | b=2). "set": the good file with --set. "reject": the good file with an on_reject in its second
# stage, which begins the place that is named. FOLDER is the folder of the schedule.
CASES = [
    # --- not a schedule at all
    ("file", "name: [a, b", "is not valid YAML: line 1, column 12: expected ',' or ']', but got '<stream end>'"),
    ("file", "", f"found nothing; {MAPPING}"),
    ("file", "# only a comment\n", f"found nothing; {MAPPING}"),
    ("file", "- name: a\n- name: b\n", f"found a list; {MAPPING}"),
    ("file", "train my model", f"found the value 'train my model'; {MAPPING}"),
    ("file", "model:\n\tfamily: llama\n", "is not valid YAML: line 2, column 1: found a tab; YAML indents with spaces"),
    ("file", "seed: 1\nseed: 2\n", "is not valid YAML: line 2, column 1: the key 'seed' stands here a second time"),
    ("file", "a: {b: 1, b: 2}", "is not valid YAML: line 1, column 11: the key 'b' stands here a second time"),
    ("file", "1: one", "is not valid YAML: line 1, column 1: found a key that is not text; quote it"),
    ("file", "? [a, b]\n: c", "is not valid YAML: line 1, column 3: found a key that is not text; quote it"),
    ("file", "a: b\n---\nc: d", "is not valid YAML: line 2, column 1: expected a single document in the stream, "
     "but found another document"),
    ("file", "stages: *all", "is not valid YAML: line 1, column 9: found undefined alias 'all'"),
    ("file", "stages: &all [*all]", "is not valid YAML: line 1, column 9: found unconstructable recursive node"),
    ("file", "name: !!python/name:os.system", "is not valid YAML: line 1, column 7: could not determine a constructor "
     "for the tag 'tag:yaml.org,2002:python/name:os.system'"),
    ("file", "seed: !!int one", "is not valid YAML: a value does not fit its tag or escape "
     "(invalid literal for int() with base 10: 'one')"),
    ("file", "name: \0", "is not valid YAML: the character '\\x00' at position 6 is not allowed in it"),
    ("file", "[" * 1000, "is not valid YAML: values are nested too deep"),
    ("file", b"\x7fELF\xff\xfe\x00", "is not text (byte 4 is not UTF-8); expected a YAML file"),
    # --- unknown keys
    ("change", "stage=[]", "stage: unknown key; did you mean 'stages'?"),
    ("change", "plateau=5", "plateau: unknown key here; it belongs in until"),
    ("change", "colour=5", f"colour: unknown key; {KNOWN_TOP}"),
    ("change", "until={tokens: 5}", "until: unknown key here; it belongs in a stage"),
    ("change", "data.paths=x", "data.paths: unknown key; did you mean 'path'?"),
    ("change", "model.hidden=5", "model.hidden: unknown key; did you mean 'hidden_size'?"),
    ("change", "training.zero_stag=1", "training.zero_stag: unknown key; did you mean 'zero_stage'?"),
    ("change", "training.lr=1e-3", "training.lr: unknown key here; it belongs in training.optimizer"),
    ("change", "training.lr_schedule.warm_up=5", "training.lr_schedule.warm_up: unknown key; did you mean 'warmup'?"),
    ("change", "stages[0].init={}", "stages[0].init: unknown key here; it belongs in the file itself"),
    ("change", "stages[0].num_layers=5", "stages[0].num_layers: unknown key here; it belongs in model"),
    ("change", "stages[0].until.token=5", "stages[0].until.token: unknown key; did you mean 'tokens'?"),
    ("change", "stages[1].grow.operater=stack", "stages[1].grow.operater: unknown key; did you mean 'operator'?"),
    ("change", "stages[1].training.optimizer.beta=[0.9, 0.9]",
     "stages[1].training.optimizer.beta: unknown key; did you mean 'betas'?"),
    ("change", "stages[1].training.evaluate.evry=5",
     "stages[1].training.evaluate.evry: unknown key; did you mean 'every'?"),
    ("change", "baseline.budget=[640]", "baseline.budget: unknown key; did you mean 'budgets'?"),
    ("change", "costs.price_per_hr=2.5", "costs.price_per_hr: unknown key; did you mean 'price_per_hour'?"),
    # --- values of the wrong kind
    ("change", "model.hidden_size=wide", f"model.hidden_size: found 'wide'; {NUMBER}"),
    ("change", "model.hidden_size=[16]", f"model.hidden_size: found [16]; {NUMBER}"),
    ("change", "model.hidden_size=true", f"model.hidden_size: found true; {NUMBER}"),
    ("change", "training.workers=yes", f"training.workers: found 'yes'; {NUMBER}"),
    ("change", "training.workers=", f"training.workers: found nothing; {NUMBER}"),
    ("change", "training.gradient_clipping=null", f"training.gradient_clipping: found nothing; {REAL}"),
    ("change", "model.tied_embeddings=2", "model.tied_embeddings: found 2; expected true or false"),
    ("change", "model=[16, 4]", f"model: found [16, 4]; {MAPPING}"),
    ("change", "model=", f"model: found nothing; {MAPPING}"),
    ("change", "training.optimizer=adamw",
     f"training.optimizer: found 'adamw'; {MAPPING}, for example optimizer: {{name: adamw, lr: 1e-3}}"),
    ("change", "stages[0]=small", f"stages[0]: found 'small'; {MAPPING}"),
    ("change", "stages={small: {num_layers: 2}}", "stages: found {'small': {'num_layers': 2}}; expected a list"),
    ("change", "stages=", "stages: found nothing; expected a list"),
    ("change", "name=7", "name: found 7; expected text"),
    ("change", "data.path=7", "data.path: found 7; expected a file or folder, or a list of them"),
    ("change", "data.path=['']", "data.path[0]: found ''; expected text that is not empty"),
    ("change", "stages[0].until=300K",
     f"stages[0].until: found '300K'; {MAPPING}, for example until: {{tokens: 400K}}"),
    ("change", "baseline.budgets=800K", "baseline.budgets: found '800K'; expected a list"),
    ("change", "costs={price_per_hour: 2.5}",
     "costs: found a price_per_hour of 2.5 alone; expected a currency, too: USD"),
    ("change", "costs.grid_intensity=-1", "costs.grid_intensity: found -1; expected at least 0"),
    # --- numbers out of range
    ("change", "model.hidden_size=0", "model.hidden_size: found 0; expected more than 0"),
    ("change", "stages[0].model.num_layers=-2", "stages[0].model.num_layers: found -2; expected at least 0"),
    ("change", "stages[0].until.tokens=1.5", f"stages[0].until.tokens: found 1.5; {WHOLE}"),
    ("change", "stages[0].until.tokens=10X", f"stages[0].until.tokens: found '10X'; {NUMBER}"),
    ("change", "stages[0].until.tokens=10e", f"stages[0].until.tokens: found '10e'; {NUMBER}"),
    ("change", "stages[0].until.tokens=.nan", f"stages[0].until.tokens: found nan; {WHOLE}"),
    ("change", "stages[0].until.tokens=.inf", f"stages[0].until.tokens: found inf; {WHOLE}"),
    ("change", "stages[0].until.tokens=1e40", "stages[0].until.tokens: found 1e+40; expected at most 1e+27"),
    ("change", "seed=-1", "seed: found -1; expected at least 0"),
    ("change", "seed=5G", "seed: found '5G'; expected less than 4,294,967,296"),
    ("change", "training.optimizer.lr=fast", f"training.optimizer.lr: found 'fast'; {REAL}"),
    ("change", "training.optimizer.lr=0", "training.optimizer.lr: found 0; expected more than 0"),
    ("change", "training.optimizer.lr=.inf",
     "training.optimizer.lr: found inf; expected a finite number such as 0.1 or 3e-4"),
    ("change", "training.optimizer.betas=[0.9]", "training.optimizer.betas: found 1 entry; expected 2"),
    ("change", "training.optimizer.betas=[0.9, 0.9, 0.9]", "training.optimizer.betas: found 3 entries; expected 2"),
    ("change", "training.optimizer.betas=[0.9, 1.0]", "training.optimizer.betas[1]: found 1.0; expected less than 1"),
    ("change", "training.optimizer.weight_decay=-1", "training.optimizer.weight_decay: found -1; expected at least 0"),
    ("change", "data.validation_fraction=0", "data.validation_fraction: found 0; expected more than 0"),
    ("change", "data.validation_fraction=1", "data.validation_fraction: found 1; expected less than 1"),
    ("change", "training.lr_schedule.min_lr_ratio=1.1",
     "training.lr_schedule.min_lr_ratio: found 1.1; expected at most 1"),
    ("change", "training.lr_schedule.warmup=-0.1", "training.lr_schedule.warmup: found -0.1; expected at least 0"),
    ("change", "training.lr_schedule.warmup=1.5",
     "training.lr_schedule.warmup: found 1.5; expected a fraction below 1, or tokens such as 50K"),
    ("change", "training.lr_schedule.decay=1.0",
     "training.lr_schedule.decay: found 1.0, one token or all of the run; expected a fraction below 1, or tokens"),
    ("change", "training.offload_optimizer=cpu | training.zero_stage=0",
     "training.offload_optimizer: found 'cpu' with zero_stage: 0, where nothing is offloaded; "
     "expected zero_stage 1, 2 or 3, or none"),
    ("change", "training.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}",
     "training.deepspeed.zero_optimization.offload_optimizer: is worked out from training.offload_optimizer; "
     "set that instead"),
    ("change", "training.zero_stage=4", "training.zero_stage: found 4; expected at most 3"),
    # --- values that are not on offer
    ("change", "data.source=books", "data.source: found 'books'; expected 'python-stdlib', 'text', 'jsonl', "
     "'parquet', 'huggingface', 'tokens', 'images' or 'arrays'"),
    ("change", "model.family=llamma",
     f"model.family: found 'llamma'; expected one of {ALL_BUT_LAST}, or {OTHERS}; did you mean 'llama'?"),
    ("change", "model.family=bloom", f"model.family: found 'bloom'; expected one of {ALL_BUT_LAST}, or {OTHERS}"),
    ("change", "data.resize=[28, 28]",
     "data.resize: found [28, 28]; expected one number for height and width, such as 28"),
    ("change", "model.family=bert",
     "objective: found causal_lm for a bert, which learns masked tokens; expected masked_lm or classification, or a "
     f"family that learns it ({', '.join(name for name, one in FAMILIES.items() if one.objective == 'next token')})"),
    ("change", "objective=masked_lm",
     "objective: found masked_lm for a llama, which learns the next token; expected causal_lm or instruct or own or "
     "distillation or classification, or a family that learns it (bert, modernbert)"),
    ("change", "objective=span", "objective.name: found 'span'; expected 'causal_lm', 'masked_lm', "
     "'instruct', 'own', 'distillation', 'classification' or 'denoising'"),
    ("change", "objective=distillation",
     "objective.teacher: missing; expected the model to learn from: an earlier stage, a folder or a hub name"),
    ("change", "objective={name: distillation, teacher: small, alpha: 0}",
     "objective.alpha: found 0; expected more than 0"),
    ("change", "objective={name: distillation, teacher: small, top_k: some}",
     "objective.top_k: found 'some'; expected a whole number from 1 to 16,777,216, or none for all "
     "tokens"),
    ("change", "objective=own",
     "objective.function: missing; expected the loss of own, for example function: my.losses:smooth"),
    ("change", "objective.mask_share=0.3",
     "objective.mask_share: found 0.3 with causal_lm; expected it with name: masked_lm"),
    ("change", "objective={name: own, function: losses}",
     "objective.function: found 'losses'; expected package.module:function or file.py:function"),
    ("change", "training.lr_schedule=cosine",
     "training.lr_schedule: found 'cosine'; expected a mapping of keys to values, "
     "for example lr_schedule: {kind: wsd, warmup: 0.02, decay: 0.2}"),
    ("change", "stages[1].grow=stack",
     "stages[1].grow: found 'stack'; expected a mapping of keys to values, for example grow: {operator: stack}"),
    ("change", "training.precision=bf61",
     "training.precision: found 'bf61'; expected 'fp32' or 'bf16'; did you mean 'bf16'?"),
    ("change", "training.lr_schedule.kind=cosin", "training.lr_schedule.kind: found 'cosin'; "
     "expected 'wsd', 'cosine', 'linear', '1-sqrt', 'constant' or 'piecewise'; did you mean 'cosine'?"),
    ("change", "training.optimizer.name=adamx", "training.optimizer.name: found 'adamx'; "
     "expected 'adamw', 'adam', 'sgd' or 'muon'; did you mean 'adam'?"),
    ("change", "training.optimizer={name: sgd, betas: [0.9, 0.99]}", "training.optimizer.betas: found [0.9, 0.99], "
     "but sgd takes no betas; expected it with adamw, adam or muon alone"),
    ("change", "training.optimizer.momentum=0.8",
     "training.optimizer.momentum: found 0.8, but adamw takes no momentum; expected it with sgd or muon alone"),
    ("change", "training.optimizer={name: adam, betas: [0.9, 0.99]} | stages[1].training.optimizer={name: sgd, "
     "eps: 1e-8}", "stages[1].training.optimizer.eps: found 1e-08, but sgd takes no eps; expected it with adamw, "
     "adam or muon alone"),
    ("change", "training.optimizer={name: muon} | training.offload_optimizer=cpu", "training.offload_optimizer: found "
     "'cpu' with optimizer.name: muon, whose workers exchange matrices between their devices; expected none"),
    ("change", "training.optimizer={name: sgd, momentum: 1}",
     "training.optimizer.momentum: found 1; expected less than 1"),
    ("change", "stages[1].grow.operator=stak", "stages[1].grow.operator: found the operator 'stak'; "
     "expected one of stack, interleave, middle, last, first, layers, random, identity, zero_pad, "
     "duplicate, aki, rms, masked, learned, upcycle; did you mean 'stack'?"),
    ("change", "stages[1].grow.operator=mid", "stages[1].grow.operator: found the operator 'mid'; "
     "expected one of stack, interleave, middle, last, first, layers, random, identity, zero_pad, "
     "duplicate, aki, rms, masked, learned, upcycle; did you mean 'middle'?"),
    ("change", "stages[1].grow.optimizer_state=rest", "stages[1].grow.optimizer_state: found 'rest'; "
     "expected 'grow', 'reset' or 'keep'; did you mean 'reset'?"),
    # --- names
    ("change", "name=my run", "name: found 'my run'; expected letters, digits, '_', and after the first '.' and '-'"),
    ("change", "stages[0].name=a/b",
     "stages[0].name: found 'a/b'; expected letters, digits, '_', and after the first '.' and '-'"),
    ("change", "stages[0].name=..",
     "stages[0].name: found '..'; expected letters, digits, '_', and after the first '.' and '-'"),
    ("change", "stages[1].name=small", "stages[1].name: found 'small' a second time; expected a name of its own"),
    # --- what is missing
    ("file", "name: a", "stages: missing; expected for example stages: "
     "[{name: small, model: {num_layers: 3}, until: {tokens: 400K}}]"),
    ("change", "stages=[]", "stages: found 0 entries; expected at least one"),
    ("change", "stages[0]={name: small}", "stages[0].until: missing; expected for example until: {tokens: 400K}"),
    ("change", "stages[0]={until: {tokens: 5}}", "stages[0].name: missing; expected for example name: small"),
    ("change", "stages[1].grow={}", "stages[1].grow.operator: missing; expected for example operator: stack"),
    ("change", "baseline={}", "baseline: missing budgets; expected one of the two, for example budgets: [800K, 1.2M, "
     "1.6M]"),
    ("change", "baseline.budgets_per_parameter=[1]", "baseline: found budgets beside budgets_per_parameter; expected "
     "one of the two, for example budgets: [800K, 1.2M, 1.6M]"),
    ("change", "length={}", "length: found nothing; expected tokens or tokens_per_parameter"),
    ("change", "length={tokens: 1M, tokens_per_parameter: 2}", "length: found both; expected tokens or "
     "tokens_per_parameter"),
    ("change", "stages[0].until={share: 0.5}", "stages[0].until.share: found 0.5 in a run whose length is not given; "
     "expected length: {tokens: 10M} in the file, or tokens in place of share"),
    ("change", "stages[0].until={share: 1.5}", "stages[0].until.share: found 1.5; expected at most 1"),
    ("change", "baseline.budgets=[]", "baseline.budgets: found 0 entries; expected at least one"),
    ("change", "model.hidden_size=",
     "model.hidden_size: missing; expected a number, in the file's model section or a stage's: "
     "it does not follow from the stage before"),
    ("change", "model={}", "model.hidden_size: missing; expected a number, in the file's model section or a stage's: "
     "it does not follow from the stage before"),
    ("change", "stages[1].model={}",
     "stages[1].model.num_layers: missing; expected a number, in the file's model section or a stage's: "
     "it does not follow from the stage before"),
    ("change", "training.global_batch_tokens=",
     "training.global_batch_tokens: missing; expected the tokens of one optimizer step over all workers"),
    # --- when a stage ends
    ("change", "stages[0].until={}", f"stages[0].until: found nothing; {TRIGGERS}"),
    ("change", "stages[0].until={any: [{tokens: 640}, {}]}", f"stages[0].until.any[1]: found nothing; {TRIGGERS}"),
    ("change", "stages[0].until={all: []}", "stages[0].until.all: found 0 entries; expected at least one"),
    ("change", "stages[0].until={any: {tokens: 640}}", "stages[0].until.any: found {'tokens': 640}; expected a list"),
    ("change", "stages[0].until={plateau: {min_delta: 0.01, patience: 3}}",
     "stages[0].until: missing a cap; expected tokens, steps or flops beside plateau"),
    ("change", "stages[0].until.plateau={min_delta: 0.01}",
     "stages[0].until.plateau.patience: missing; expected for example patience: 3"),
    ("change", "stages[0].until.plateau={min_delta: 0, patience: 3}",
     "stages[0].until.plateau.min_delta: found 0; expected more than 0"),
    ("change", "stages[0].until.plateu={}", "stages[0].until.plateu: unknown key; did you mean 'plateau'?"),
    ("change", "stages[0].until.patience=3", "stages[0].until.patience: unknown key here; it belongs in until.plateau"),
    ("change", "stages[0].until.any=[{any: [{tokns: 640}]}]",
     "stages[0].until.any[0].any[0].tokns: unknown key; did you mean 'tokens'?"),
    ("change", "stages[0].until.slope={tau: 0.0575}",
     "stages[0].until.slope.tau: found 0.0575; expected less than 0"),
    ("change", "stages[0].until.seconds=soon",
     "stages[0].until.seconds: found 'soon'; expected seconds, or a time such as 30s, 5m or 2h"),
    ("change", "stages[0].until.seconds=0", "stages[0].until.seconds: found 0; expected more than 0"),
    ("change", "stages[1].until.all=[{mixing: {tokens: 400, of: 1280}}]", "stages[1].until.all[0].mixing: found a "
     "growth at 624 tokens of the run, where the stage begins at 640; expected a later one: a shorter mixing time, or "
     "shorter stages before"),
    ("change", "stages[0].until={mixing: {tokens: 400, of: 1280}} | training.lr_schedule.kind=linear",
     "stages[0].until.mixing: found with a rate that has no stable phase; expected lr_schedule.kind: wsd or constant"),
    # --- whether it is accepted
    ("change", "stages[0].accept={}", "stages[0].accept: found nothing; expected one or more of eval_loss_below, "
     "accuracy_above, loss_increase_below, max_logit_difference_below, gradient_error_below, twin_distance_above, "
     "overfitting, forgetting_below, metrics"),
    ("change", "stages[0].accept={accuracy_above: 40}",
     "stages[0].accept.accuracy_above: found 40; expected less than 1"),
    ("change", "stages[0].accept={eval_los_below: 2}",
     "stages[0].accept.eval_los_below: unknown key; did you mean 'eval_loss_below'?"),
    ("change", "stages[0].accept={loss_increase_below: 0.1}",
     "stages[0].accept.loss_increase_below: found in a stage without grow, which has no certificate; remove it"),
    ("change", "stages[0].on_reject=abort",
     "stages[0].on_reject: found without accept or grow.require; expected one beside it, or none"),
    ("reject", "abrot", "found 'abrot'; expected abort, or a mapping with one of retry, extend, rewind"),
    ("reject", "{}", "found a mapping; expected abort, or a mapping with one of retry, extend, rewind"),
    ("reject", "{retyr: {}}", "retyr: unknown key; did you mean 'retry'?"),
    ("reject", "{extend: {tokens: 64}, retry: {set: {seed: 1}}}",
     "found retry and extend; expected one of them"),
    ("reject", "{extend: {times: 2}}", "extend.tokens: missing; expected for example tokens: 50K"),
    ("reject", "{retry: {times: 2}}", "retry.set: missing, so that another attempt would be the same again; "
     'expected for example {training.optimizer.lr: "*0.5"}'),
    ("reject", "{retry: {times: 101, set: {seed: '+1'}}}", "retry.times: found 101; expected at most 100"),
    ("reject", "{retry: {times: 2, set: {seed: 1}}}", "retry: found times: 2 with nothing but plain values, so that "
     'every attempt after the first would be the same again; expected a relative one such as "*0.5", or times: 1'),
    ("reject", "{retry: {set: {seed: 0}}}", "retry.set: attempt 1 would repeat the one before it; expected a change"),
    ("reject", "{retry: {times: 2, set: {training.optimizer.lr: '*1'}}}",
     "retry.set: attempt 1 would repeat the one before it; expected a change"),
    ("reject", "{retry: {times: 2, set: {training.gradient_clipping: '*0'}}}",
     "retry.set: attempt 2 would repeat the one before it; expected a change"),
    ("reject", "{retry: {set: {training lr: 1}}}", "retry.set: found the key 'training lr'; "
     "expected one of a stage such as training.optimizer.lr"),
    ("reject", "{retry: {set: {accept.eval_loss_below: 9}}}",
     "retry.set: found accept.eval_loss_below; another attempt keeps the stage's name and gates"),
    ("reject", "{retry: {set: {trainin.lr: 1}}}",
     "retry.set: attempt 1 cannot be planned: stages[1].trainin: unknown key; did you mean 'training'?"),
    ("reject", "{retry: {times: 3, set: {training.optimizer.weight_decay: '-0.05'}}}", "retry.set: attempt 3 cannot be "
     "planned: stages[1].training.optimizer.weight_decay: found -0.05; expected at least 0"),
    ("reject", "{rewind: {set: {seed: 1}}}", "rewind.to: missing; expected for example to: small"),
    ("reject", "{rewind: {to: full, set: {seed: 1}}}", "rewind.to: found 'full'; expected an earlier stage: small"),
    ("change", "stages[0].accept={eval_loss_below: 2} | stages[0].on_reject={rewind: {to: small, set: {seed: 1}}}",
     "stages[0].on_reject.rewind.to: found 'small'; expected retry: the first stage has none before it"),
    ("reject", "{rewind: {to: small, set: {model.num_layers: 3}}}", "rewind.set: attempt 1 cannot be planned: "
     "stages[1].model.num_layers: found 4 layers after 3; expected a multiple to stack (3, 6, 9, 12, ...)"),
    # --- shapes
    ("change", "model.num_heads=5", "model.hidden_size: found 16 for 5 heads; expected a multiple of 10 "
     "(rotary positions need heads of even size), or a head_size beside it"),
    ("change", "model.num_heads=16", "model.hidden_size: found 16 for 16 heads; expected a multiple of 32 "
     "(rotary positions need heads of even size), or a head_size beside it"),
    ("change", "stages[0].model.hidden_size=18", "stages[0].model.hidden_size: found 18 for 4 heads; expected a "
     "multiple of 8 (rotary positions need heads of even size), or a head_size beside it"),
    ("change", "model.head_size=3", "model.head_size: found 3; expected an even number, for rotary positions"),
    ("change", "model.num_kv_heads=3", "model.num_kv_heads: found 3; expected a divisor of num_heads (4)"),
    ("change", "stages[1].model.num_kv_heads=8",
     "stages[1].model.num_kv_heads: found 8; expected a divisor of num_heads (4)"),
    ("change", "model.vocab_size=256", 
     "model.vocab_size: found 256; expected at least 257: the ids of the tokenizer 'bytes' go up to 256"),
    # --- growing
    ("change", "stages[1].grow.rewarm={factor: 1.3}",
     "stages[1].grow.rewarm.tokens: missing; expected for example tokens: 50K"),
    ("change", "stages[1].grow={operator: identity, rewarm: {factor: 0, tokens: 64}}",
     "stages[1].grow.rewarm.factor: found 0; expected more than 0"),
    ("change", "stages[1].grow={operator: identity, rewarm: {tokens: 321}}", "stages[1].grow.rewarm.tokens: found 321, "
     "which rise and fall over 642 tokens in a stage of 640; expected at most 320"),
    ("change", "stages[1].grow.rewarm={tokens: 64}", "stages[1].grow.rewarm: found a rewarm, but stack makes no new "
     "parameters here, only copies with their state; expected none, or another operator"),
    ("change", "stages[1]={name: same, model: {num_layers: 2}, until: {tokens: 1280}, grow: {operator: zero_pad, "
     "rewarm: {tokens: 64}}}", "stages[1].grow.rewarm: found a rewarm, but zero_pad makes no new parameters here, only "
     "copies with their state; expected none, or another operator"),
    ("change", "stages[0].grow={operator: stack}",
     "stages[0].grow: found in the first stage, which has nothing to grow from; remove it"),
    ("change", "stages[1].grow=",
     "stages[1].grow: missing, though num_layers goes from 2 to 4; expected for example grow: {operator: stack}"),
    ("change", "stages[1].model.num_layers=5",
     "stages[1].model.num_layers: found 5 layers after 2; expected a multiple to stack (2, 4, 6, 8, ...)"),
    ("change", "stages[1].model.num_layers=1",
     "stages[1].model.num_layers: found 1 layers after 2; expected a multiple to stack (2, 4, 6, 8, ...)"),
    ("change", "stages[1].grow.operator=interleave | stages[1].model.num_layers=1",
     "stages[1].model.num_layers: found 1 layers after 2; expected at least 2"),
    ("change", "stages[1].grow= | stages[1].model.num_layers=1",
     "stages[1].grow: missing, though num_layers goes from 2 to 1; expected which layers stay, for example "
     "grow: {operator: layers, layers: [0]}"),
    ("change", "stages[1].model.hidden_size=32",
     "stages[1].model.hidden_size: found 32 after 16; stack grows num_layers only; "
     "expected for example operator: {num_layers: stack, width: duplicate}"),
    ("change", "stages[1].grow.operator={depth: stack, wdith: duplicate}", "stages[1].grow.operator: found the part "
     "'wdith'; expected one of depth, width, num_layers, hidden_size, ffn_size, num_heads, num_experts"),
    ("change", "stages[1].grow.operator={width: stack}",
     "stages[1].grow.operator: found stack for width; stack grows num_layers only"),
    ("change", "stages[1].grow.operator={}", "stages[1].grow.operator: found no part; "
     "expected for example {num_layers: stack, width: duplicate}"),
    ("change", "stages[1].grow.operator={depth: stack, width: duplicate} | stages[1].model.hidden_size=32",
     "stages[1].model.hidden_size: found heads of 8 after 4, and heads grow in number, not in size; "
     "expected head_size: 4, with for example num_heads: 8"),
    ("change", "stages[1].grow.operator={depth: stack, width: duplicate} | stages[1].model.ffn_size=20",
     "stages[1].model.ffn_size: found 20 after 64; expected at least 64"),
    ("change", "stages[1].grow.operator={depth: stack, width: zero_pad} | stages[1].model.num_kv_heads=4 | "
     "stages[0].model.num_kv_heads=2", "stages[1].model.num_kv_heads: found 4 query and 4 key/value heads after 4 and "
     "2, which leaves zero_pad no place for every query head beside its own key/value head; expected as many query "
     "heads for each key/value head as before, or more"),
    ("change", "stages[1].model.family=mixtral", "model.num_experts: missing; expected the number of "
     "experts of a mixtral"),
    ("change", "model.num_experts=4",
     "model.num_experts: found 4, but a llama has no experts; expected family: mixtral or qwen3_moe"),
    ("change", "model.family=mixtral | model.num_experts=2 | model.experts_per_token=3",
     "model.experts_per_token: found 3; expected at most num_experts (2)"),
    ("change", "stages[1].model.family=mixtral | stages[1].model.num_experts=4",
     "stages[1].model.family: found mixtral after llama; stack grows num_layers only; "
     "expected for example operator: {num_layers: stack, num_experts: upcycle}"),
    ("change", "stages[1].grow.operator=last | stages[1].model.num_layers=5",
     "stages[1].model.num_layers: found 5 layers after 2; expected 2 to 4"),
    ("change", "stages[1].grow.operator=first | stages[1].model.num_layers=1",
     "stages[1].model.num_layers: found 1 layers after 2; expected 2 to 4"),
    ("change", "stages[1].grow.operator=random | stages[1].model.num_layers=1",
     "stages[1].model.num_layers: found 1 layers after 2; expected at least 2"),
    ("change", "stages[1].grow={operator: middle, block: 2} | stages[1].model.num_layers=1",
     "stages[1].model.num_layers: found 1 layers after 2; expected at least 2"),
    ("change", "stages[1].grow={operator: middle, block: 2} | stages[1].model.num_layers=5",
     "stages[1].grow.block: found 2, which does not divide the 3 new layers; expected a divisor of 3"),
    ("change", "stages[1].grow={operator: middle, block: 3} | stages[1].model.num_layers=5",
     "stages[1].grow.block: found 3; expected at most the source's 2 layers"),
    ("change", "stages[1].grow={operator: middle, block: 0}", "stages[1].grow.block: found 0; expected more than 0"),
    ("change", "stages[1].grow.block=2",
     "stages[1].grow.block: found 2, but stack takes no block; expected operator: middle, or no block"),
    ("change", "stages[1].grow.layers=[0, 1, 0, 1]", "stages[1].grow.layers: found [0, 1, 0, 1], but stack takes no "
     "layers; expected operator: layers or identity, or no layers"),
    ("change", "stages[1].grow.operator=layers",
     "stages[1].grow.layers: missing; expected a list of 4 of the source's layers (0 to 1)"),
    ("change", "stages[1].grow={operator: layers, layers: [0, 1, 1]}",
     "stages[1].grow.layers: found a list of 3; expected 4 entries, one for each of num_layers"),
    ("change", "stages[1].grow={operator: layers, layers: [0, 1, 2, 3]}",
     "stages[1].grow.layers: found 2; expected the source's layers (0 to 1)"),
    ("change", "stages[1].grow={operator: layers, layers: [0, 1, -1, 0]}",
     "stages[1].grow.layers[2]: found -1; expected at least 0"),
    ("change", "stages[1].grow={operator: layers, layers: [0, 1, one, 0]}",
     f"stages[1].grow.layers[2]: found 'one'; {NUMBER}"),
    ("change", "stages[1].grow={operator: layers, layers: []}",
     "stages[1].grow.layers: found 0 entries; expected at least one"),
    ("change", "stages[1].grow={operator: layers, layers: 0101}",
     "stages[1].grow.layers: found '0101'; expected a list"),
    ("change", "stages[1].grow={operator: identity, layers: [0, 1, 1]}",
     "stages[1].grow.layers: found a list of 3; expected 4 entries, one for each of num_layers"),
    ("change", "stages[1].grow={operator: identity, layers: [1, 0, 0, 1]}", "stages[1].grow.layers: found layers that "
     "first come in the order [1, 0]; expected all of 0 to 1 in theirs, since the first of each is the kept one"),
    ("change", "stages[1].grow={operator: identity, layers: [0, 0, 0, 0]}", "stages[1].grow.layers: found layers that "
     "first come in the order [0]; expected all of 0 to 1 in theirs, since the first of each is the kept one"),
    ("change", "stages[0].model.num_layers=0", "stages[1].grow.operator: found 'stack' after 0 layers, which leave it "
     "nothing to copy; expected random or masked"),
    ("change", "stages[0].model.num_layers=0 | stages[1].grow=",
     "stages[1].grow: missing, though num_layers goes from 0 to 4; expected for example grow: {operator: random}"),
    ("change", "stages[1].grow= | stages[1].model={num_layers: 2, ffn_size: 5}",
     "stages[1].model.ffn_size: found 5 after 64; a stage without grow keeps its shape"),
    # --- batches and workers
    ("change", "training.global_batch_tokens=60",
     "training.global_batch_tokens: found 60; expected a multiple of context_length (8), such as 64"),
    ("change", "stages[1].training.global_batch_tokens=3",
     "stages[1].training.global_batch_tokens: found 3; expected a multiple of context_length (8), such as 8"),
    ("change", "training.workers=9",
     "training.workers: found 9; expected at most one for each of a global batch's 8 sequences, or "
     "training.global_batch_tokens of at least 72"),
    ("change", "stages[1].training.gpus_per_worker=2",
     "stages[1].training.gpus_per_worker: found 2, but a worker trains on one GPU; expected 1, and more "
     "training.workers"),
    ("change", "stages[1].training.workers=9",
     "stages[1].training.workers: found 9; expected at most one for each of a global batch's 8 sequences, or "
     "training.global_batch_tokens of at least 72"),
    # --- the rate and the baseline
    ("change", "training.lr_schedule.warmup=1200", "training.lr_schedule: found a warm-up of 1200 and a decay of 256 "
     "in a run of 1280; expected them to fit into it"),
    ("change", "training.lr_schedule={kind: cosine, warmup: 2K}", "training.lr_schedule: found a warm-up of 2000 "
     "in a run of 1280; expected them to fit into it"),
    ("change", "stages[0].training.lr_schedule.warmup=600", "stages[0].training.lr_schedule: found a warm-up of 600 "
     "and a decay of 128 in a run of 640; expected them to fit into it"),
    ("change", "baseline.budgets=[640, 64]", "baseline.budgets[1]: found a warm-up of 64 and a decay of 13 "
     "in a run of 64; expected them to fit into it"),
    ("change", "baseline.budgets=[640, 0]", "baseline.budgets[1]: found 0; expected more than 0"),
    ("change", "baseline.budgets=[640, 640]",
     "baseline.budgets[1]: found 640, 10 steps of 64 tokens, a second time; expected each budget once"),
    ("change", "baseline.budgets=[640, 600]",
     "baseline.budgets[1]: found 600, 10 steps of 64 tokens, a second time; expected each budget once"),
    # --- data
    ("change", "data.curriculum={by: {colum: quality}}",
     "data.curriculum.by: colum: unknown key; did you mean 'column'?"),
    ("change", "data.curriculum={by: {column: 5}}", "data.curriculum.by: column: found 5; expected text"),
    ("change", "data={source: text}",
     "data.path: missing; expected a file or folder, or a list of them, for source: text"),
    ("change", "data.path=FOLDER/nowhere",
     "data.path: found no file or folder 'FOLDER/nowhere'; expected one that is there"),
    ("change", "stages[1].data.path=FOLDER/nowhere",
     "stages[1].data.path: found no file or folder 'FOLDER/nowhere'; expected one that is there"),
    ("change", "data.path=FOLDER/empty",
     "data.path: found no text in FOLDER/empty; expected files with something in them"),
    ("change", "data.path=FOLDER/texts/1.txt",
     "data.path: found 1 document; expected two or more, some of them to hold out "
     "(data.document_separator or data.document_bytes to cut it at, or data.validation_path)"),
    ("change", "data={source: text, path: FOLDER/texts/1.txt, document_separator: '<|end|>'}",
     "data.document_separator: found '<|end|>', which stands nowhere in the text; expected what parts its documents"),
    ("change", "data.path=[FOLDER/texts/1.txt, FOLDER/texts/1.txt]",
     "data.path: found 2 documents of one and the same text; expected two or more, some of them to hold out "
     "(data.document_separator or data.document_bytes to cut it at, or data.validation_path)"),
    ("change", "data.validation_fraction=0.001", "data.validation_fraction: found 0.001, which holds out none of 12 "
     "documents; expected more documents, or for example 0.08"),
    ("change", "data.validation_fraction=0.999", "data.validation_fraction: found 0.999, which leaves none for "
     "training of 12 documents; expected more documents, or for example 0.08"),
    ("change", "data.source=python-stdlib",
     "data.path: found a path, but source python-stdlib reads none; expected source: text, or path: []"),
    ("change", "data.tokenizer=gpt2@1111111111111111111111111111111111111111",
     "model.vocab_size: missing; expected one more than the largest id of the tokenizer "
     "'gpt2@1111111111111111111111111111111111111111', not known here"),
    ("change", "data={source: text, path: FOLDER/texts, validation_path: FOLDER/texts}",
     "data.validation_path: found every document that is in data.path, too; expected other text to hold out"),
    ("change", "data.validation_path=FOLDER/empty",
     "data: found both validation_fraction and validation_path; expected one of them"),
    ("change", "data={document_bytes: 1K}",
     "data.document_bytes: found 1000 for source python-stdlib; expected it with source: text, "
     "or document_bytes: null where a stage has another source"),
    ("change", "model.context_length=1024 | training={global_batch_tokens: 1024, workers: 1}",
     "data.path: found 560 bytes to train on, at most 565 tokens; expected more than a sequence's 1024 "
     "(context_length)"),
    ("change", "data.document_bytes=1", "data.document_bytes: found 1; expected at least 256"),
    ("change", "data.tokenizer=a--b/c..d",
     "data.tokenizer: found 'a--b/c..d', no folder here, and the hub did not give it (Cannot have -- or .. in repo_id: "
     "'a--b/c..d'.); expected a folder, or a hub that can be reached"),
    ("change", "data.tokenizer=no such folder",
     "data.tokenizer: found 'no such folder', which is no folder here; expected 'bytes', a folder or a hub name"),
    ("change", "data.encoding_errors=ignore", "data.encoding_errors: found 'ignore'; expected 'strict' or 'replace'"),
    ("change", "data.document_separator=''", "data.document_separator: found ''; expected text that is not empty"),
    ("change", "data.tokenizer=./nowhere",
     "data.tokenizer: found './nowhere', which is no folder here; expected 'bytes', a folder or a hub name"),
    ("change", "data.tokenizer=FOLDER/texts", "data.tokenizer: found no tokenizer in the folder 'FOLDER/texts'; "
     "expected tokenizer.json or the like in it"),
    # --- a tuned baseline and several seeds
    ("change", "seeds=0", "seeds: found 0; expected more than 0"),
    ("change", "seeds=101", "seeds: found 101; expected at most 100"),
    ("change", "seeds=3 | baseline=null",
     "seeds: found 3 without a baseline to compare every seed's run with; expected a baseline section beside it, or 1"),
    ("change", "seeds=3 | seed=4294967294", "seed: found 4294967294 with 3 seeds from it on; "
     "expected at most 4294967293"),
    ("change", "baseline.tune=[1e-3]", f"baseline.tune: found [0.001]; {MAPPING}"),
    ("change", "baseline={budgets: [640], tune: {training.workers: [1, 2]}}", "baseline.tune: found "
     f"'training.workers'; expected one of {TUNABLE}"),
    ("change", "baseline={budgets: [640], tune: {training.batch_tokens: [64]}}", "baseline.tune: "
     "found 'training.batch_tokens' (did you mean training.global_batch_tokens?); "
     f"expected one of {TUNABLE}"),
    ("change", "baseline={budgets: [640], tune: {training.global_batch_tokens: [null]}}", "baseline.tune: "
     "training.global_batch_tokens: found null; expected a value"),
    ("change", "baseline={budgets: [640], tune: {training.lr_schedule.warmup: [1]}}", "baseline.tune: "
     "training.lr_schedule.warmup: found 1, one token or all of the run; expected a fraction below 1, or tokens"),
    ("change", "baseline={budgets: [640], tune: {training.optimizer.lr: 1e-3}}", "baseline.tune: "
     "training.optimizer.lr: found 0.001; expected a list of values such as [1e-3, 2e-3, 4e-3]"),
    ("change", "baseline={budgets: [640], tune: {training.optimizer.lr: []}}", "baseline.tune: "
     "training.optimizer.lr: found []; expected a list of values such as [1e-3, 2e-3, 4e-3]"),
    ("change", "baseline={budgets: [640], tune: {training.optimizer.lr: [1e-3, -1]}}", "baseline.tune: "
     "training.optimizer.lr: found -1; expected more than 0"),
    ("change", "baseline={budgets: [640], tune: {training.optimizer.lr: [1e-3, 0.001]}}", "baseline.tune: "
     "training.optimizer.lr: found 0.001 a second time; expected each value once"),
    ("change", "baseline={budgets: [640], tune: {training.optimizer.momentum: [0.5]}}", "baseline.tune: momentum-0.5 "
     "cannot be planned: training.optimizer.momentum: found 0.5, but adamw takes no momentum; expected it with sgd "
     "or muon alone"),
    ("change", "baseline={budgets: [640], tune: {training.optimizer.lr: [2e-3]}} | "
     "stages[1].training={optimizer: {lr: 1e-4}}",
     "stages[1].training.optimizer.lr: found 0.0001 in a stage, which baseline.tune would leave as it is; expected it "
     "in the file's training section alone, where it is tuned for the whole run"),
    ("change", "seeds=2 | stages[1].accept={eval_loss_below: 2}", "stages[1].accept: found beside seeds, whose runs "
     "have all to be finished to be compared; remove it, or seeds"),
    ("change", "baseline={budgets: [640], tune: {training.optimizer.lr: [2e-3]}} | "
     "stages[1].grow={operator: stack, require: {loss_increase_below: 1}}", "stages[1].grow.require: found beside "
     "baseline.tune, whose runs have all to be finished to be compared; remove it, or baseline.tune"),
    # --- DeepSpeed's options
    ("change", "training.deepspeed=zero", f"training.deepspeed: found 'zero'; {MAPPING}"),
    ("change", "training.deepspeed.train_batch_size=4",
     "training.deepspeed.train_batch_size: is worked out from training.global_batch_tokens; set that instead"),
    ("change", "training.deepspeed.zero_optimization={stage: 2}",
     "training.deepspeed.zero_optimization.stage: is worked out from training.zero_stage; set that instead"),
    ("change", "training.deepspeed.bf16={enabled: true}",
     "training.deepspeed.bf16: is worked out from training.precision; set that instead"),
    ("change", "training.deepspeed.zero_optimisation={}", "training.deepspeed.zero_optimisation: not an option that is "
     "passed on to DeepSpeed; did you mean 'zero_optimization'?"),
    ("change", "stages[1].training.deepspeed.zero_optimization={overlap_com: true}",
     "stages[1].training.deepspeed.zero_optimization.overlap_com: not an option that is passed on to DeepSpeed; "
     "did you mean 'overlap_comm'?"),
    ("change", "training.deepspeed.zero_optimization=2", f"training.deepspeed.zero_optimization: found 2; {MAPPING}"),
    ("change", "training.deepspeed.zero_optimization={overlap_comm: maybe}",
     "training.deepspeed.zero_optimization.overlap_comm: found 'maybe'; expected true or false"),
    ("change", "training.deepspeed.zero_optimization={reduce_bucket_size: big}",
     f"training.deepspeed.zero_optimization.reduce_bucket_size: found 'big'; {NUMBER}"),
    ("change", "training.deepspeed.zero_optimization={reduce_bucket_size: -1}",
     "training.deepspeed.zero_optimization.reduce_bucket_size: found -1; expected at least 0"),
    ("change", "training.deepspeed.communication_data_type=fp8",
     "training.deepspeed.communication_data_type: found 'fp8'; expected 'fp32', 'bf16' or 'fp16'"),
    ("change", "training.deepspeed.comms_logger={prof_ops: all_reduce}",
     "training.deepspeed.comms_logger.prof_ops: found 'all_reduce'; expected a list of texts"),
    # --- the command line
    ("set", "seed", f"--set seed: {KEY_VALUE}"),
    ("set", "=5", f"--set =5: {KEY_VALUE}"),
    ("set", "stages.0.name=a", f"--set stages.0.name=a: {KEY_VALUE}"),
    ("set", "model..hidden_size=8", f"--set model..hidden_size=8: {KEY_VALUE}"),
    ("set", "stages[2].name=a", "--set stages[2].name=a: found [2], but stages has 2 entries, counted from 0"),
    ("set", "stages.name=a",
     "--set stages.name=a: stages has no entry of the name 'name'; expected small or full"),
    ("set", "name.first=a",
     "--set name.first=a: name is the value 'tiny'; expected a mapping that 'first' can be set in"),
    ("set", "sweeps[0]=a", "--set sweeps[0]=a: sweeps is nothing; expected a list that has an entry [0]"),
    ("set", "model.hidden_size=[", "--set model.hidden_size=[: the value is not valid YAML: line 1, column 2: "
     "expected the node content, but found '<stream end>'"),
    ("set", "modle.hidden_size=8", "modle: unknown key; did you mean 'model'?"),
    ("set", "model.hidden_size=zero", f"model.hidden_size: found 'zero'; {NUMBER}"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad")
    for name in ("texts", "empty"):
        (path / name).mkdir()
    write_documents(path / "texts")
    (path / "empty" / "nothing.txt").touch()
    return path


@pytest.mark.parametrize(("how", "written", "said"), CASES, ids=[f"{how}-{str(text)[:60]}" for how, text, _ in CASES])
def test_one_line_says_what_is_wrong(how: str, written: str | bytes, said: str, folder: Path) -> None:
    file = folder / "schedule.yaml"
    good = GOOD.replace("FOLDER", str(folder))
    if how == "file":
        file.write_bytes(written if isinstance(written, bytes) else written.encode())
    elif how == "set":
        file.write_text(good)
    elif how == "reject":
        file.write_text(changed(good, f"stages[1].accept={{eval_loss_below: 2}} | stages[1].on_reject={written}"))
        said = f"stages[1].on_reject{': ' if said.startswith('found') else '.'}{said}"
    else:
        file.write_text(changed(good, written.replace("FOLDER", str(folder))))
    with pytest.raises(InputError) as caught:
        make_plan(load(file, (written,) if how == "set" else ()))
    assert str(caught.value) == f"{file}: {said.replace('FOLDER', str(folder))}"
    assert "\n" not in str(caught.value)


def changed(text: str, changes: str) -> str:
    content = yaml.safe_load(text)
    for change in changes.split(" | "):
        yaml_file.apply_override(content, change)
    return yaml.safe_dump(content, sort_keys=False)


def test_the_good_file_is_good(folder: Path) -> None:
    (folder / "good.yaml").write_text(GOOD.replace("FOLDER", str(folder)))
    assert make_plan(load(folder / "good.yaml")).name == "tiny"


@pytest.mark.parametrize(
    "change",
    [
        "training.precision=bf16 | training.zero_stage=0",
        "model.tied_embeddings=yes",
        "stages[0].until={tokens: 640, steps: null}",
        "stages[0].until={tokens: 640, steps: 5}",
        "stages[0].until={plateau: {min_delta: 0.01, patience: 3}, seconds: 1.5h, steps: 2}",
        "stages[0].until={any: [{all: [{eval_loss: 2}, {slope: {tau: -0.05, hits: 3}}]}, {steps: 4}], steps: 9}",
        "stages[0].until={mixing: {tokens: 400, of: 1280}}",
        "stages[1].accept={loss_increase_below: 0.3} | stages[1].on_reject={rewind: {to: small, set: {seed: 1}}}",
        "stages[0].accept={overfitting: {evaluations: 3}} | stages[0].on_reject={extend: {tokens: 64, times: 3}}",
        "stages[0].accept={accuracy_above: 0.4} | stages[0].seed=5",
        "training.workers=8",
        "training.deepspeed={zero_optimization: {reduce_bucket_size: 5e8}}",
        "baseline=null",
        "data.tokenizer=gpt2@1111111111111111111111111111111111111111 | model.vocab_size=50257",
        "stages[1].model.context_length=16",
        "stages[0].model.num_layers=0 | stages[1].grow.operator=random",
        "stages[0].model.num_layers=0 | stages[1].model.num_layers=0 | stages[1].grow=",
        "stages[1].grow={operator: layers, layers: [1]} | stages[1].model.num_layers=1",
        "stages[1].grow={operator: identity, layers: [0, 1, 0, 1]}",
        "stages[1].grow={operator: middle, block: 1, layers: null} | stages[1].model.num_layers=7",
    ],
)
def test_unusual_but_good(change: str, folder: Path) -> None:
    (folder / "unusual.yaml").write_text(changed(GOOD.replace("FOLDER", str(folder)), change))
    assert make_plan(load(folder / "unusual.yaml")).staged.stages


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.yaml", "no such file; expected a YAML file"),
        ("texts", "is a folder; expected a YAML file"),
        ("texts/0.txt/a.yaml", "cannot be read (Not a directory); expected a YAML file"),
    ],
)
def test_no_file_to_read(name: str, said: str, folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(folder / name)
    assert str(caught.value) == f"{folder / name}: {said}"


@pytest.mark.parametrize("name", ["", "a b", "../a", "-a"])
def test_a_run_needs_a_name_that_can_be_a_folder(name: str, folder: Path) -> None:
    (folder / "good.yaml").write_text(GOOD.replace("FOLDER", str(folder)))
    with pytest.raises(InputError, match=r"^--name: found '.*'; expected letters"):
        make_plan(load(folder / "good.yaml"), name)


def test_a_file_says_no_more_than_one_error_at_a_time(folder: Path) -> None:
    """The unknown key comes first: what is missing may be what it was meant to be."""
    (folder / "many.yaml").write_text("nmae: a\nseed: -1\nstages: []")
    with pytest.raises(InputError) as caught:
        load(folder / "many.yaml")
    assert str(caught.value) == f"{folder / 'many.yaml'}: nmae: unknown key; did you mean 'name'?"
