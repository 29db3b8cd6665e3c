"""raystage from Python, cell by cell as in a notebook: load a schedule, look at its plan, run it, look at the report.

python jobs/from_python.py jobs/schedules/quickstart.yaml [KEY=VALUE ...]
"""

# %% What a schedule would cost, before anything runs.
import sys

import raystage

schedule = raystage.load(sys.argv[1], sys.argv[2:])
plan = raystage.plan(schedule)
for stage in plan.staged.stages:
    print(f"{stage.name}: {stage.shape.num_layers} layers, {stage.duration} {stage.unit}, {stage.flops:.3g} FLOPs")

# %% Train it. What the store has finished is not trained again. The first Ctrl-C saves and stops.
report = raystage.run(schedule)

# %% In a notebook the report is a table; here it is printed.
print(report)

# %% The curves, for a plot of one's own.
curves = report.curves()
print(curves.groupby("run").loss.min().to_string())
