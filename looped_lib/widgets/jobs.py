"""Watch fine-tuning jobs from a notebook: a progress bar, and curves that grow while the job runs.

    watch(start(config, run_dir, processes))

In JupyterLab the curves are live; in a batch run only the bar is, and the figure of `plots.finetuning` stays.
"""

from IPython.display import display
from tqdm.auto import tqdm

from looped_lib.core.files import read_json
from looped_lib.ouro.finetune.folder import RESULT
from looped_lib.ouro.finetune.launch import Job
from looped_lib.plots.finetuning import PANELS, finetuning, series
from looped_lib.runs.results import total_seconds
from looped_lib.widgets.live import Live


def watch(job: Job, updates: int, live: bool = True) -> Job:
    """Follow a job to its end; `updates` is how many the plan says, until the job has read its data. RuntimeError if it fails.

    Interrupting the kernel leaves the job running: call this again to go on watching, or `job.stop()`.
    """
    name = job.run_dir.name
    if (job.run_dir / RESULT).exists():
        print(f"{name}: finished before, {total_seconds(read_json(job.run_dir / RESULT)['seconds']):.0f} s")
        return job
    before = job.metrics()
    curves = None
    if live:
        shown = Live(finetuning({name: before}))
        display(shown)
        curves = shown.figure
    done = 0 if before.empty else int(before.step.iloc[-1])  # or the time left would count what was done before we looked
    with tqdm(total=updates, initial=done, desc=name, unit="update") as bar:

        def look(job: Job) -> None:
            table = job.metrics()
            if table.empty:
                return
            last, bar.total = table.iloc[-1], job.updates() or updates
            bar.update(int(last.step) - bar.n)
            bar.set_postfix(loss=f"{last.loss:.3g}", penalty=f"{last.penalty:.3g}", tokens_per_sec=f"{last.tokens_per_sec:.0f}")
            if curves is not None:
                with curves.batch_update():
                    for trace, column in zip(curves.data, PANELS, strict=True):
                        points = series(table, column)
                        trace.x, trace.y = points.index.to_numpy(), points.to_numpy()

        return job.wait(look)
