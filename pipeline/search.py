"""python -m pipeline.search: trials of other settings, and the recipe that comes out best.

The same command again resumes, and one for more trials keeps those that are there.
"""

import sys
from contextlib import ExitStack
from functools import partial

from pipeline.defend.classifiers import classifiers_of
from pipeline.defend.plan import Plan, make_plan
from pipeline.defend.searching import search, search_folder
from pipeline.delivery import check_arrival
from pipeline.exits import conduct, refusing
from pipeline.flags import parse
from pipeline.placement import Session
from pipeline.presets import PRESETS
from pipeline.progress import Say, passing
from pipeline.recipe import SearchConfig
from pipeline.tell.search_files import track_trials, write_search
from pipeline.tell.trial_table import search_text, table_of_trials

USAGE = f"python -m pipeline.search [{'|'.join(PRESETS)}] [--trials N] [--flags]"


def run_search(plan: Plan, say: Say) -> str:
    """A plan's search from what is there to the end; what the command prints."""
    with ExitStack() as stack:
        passing(say)("classifier")
        workers = Session(plan.command.workers, plan.recipe, stack, first=partial(check_arrival, plan.external))
        ((classifier, _),) = classifiers_of([plan], workers, say)
        setup = plan.setup(classifier)
        folder = search_folder(plan, setup)
        say(f"{plan.data.name}: search {folder}")
        searched = search(setup, plan.recipe, workers, say, folder=folder)
        written = write_search(searched, folder, preset=plan.command.preset)
        if plan.command.track:
            track_trials(searched, folder, plan.command.track, say)
    paths = "".join(f"\n{name:14}{path}" for name, path in written.items())
    train = f"python -m pipeline.run --recipe {written['best']} --root {plan.root}"
    return f"\n{table_of_trials(searched)}\n\n{search_text(searched)}\n{paths}\n\nto train it: {train}"


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code, as `conduct` says."""
    given = sys.argv[1:] if argv is None else argv
    command = parse(given, usage=USAGE, purpose="Search settings of a recipe.", trials=SearchConfig().trials)
    with refusing():
        if not command.recipe.search.trials:
            raise ValueError("--trials is 0: a search needs at least 1")
        plan = make_plan(command)
    return conduct(lambda say: run_search(plan, say), root=command.root, log_level=command.log_level)


if __name__ == "__main__":
    sys.exit(main())
