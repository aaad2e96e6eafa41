"""The parts of a search, put together."""

from __future__ import annotations

from flows.searching.appraisal import Appraisal
from flows.searching.candidate_maker import CandidateMaker
from flows.searching.form_maker import FormMaker
from flows.searching.rung_trainer import RungTrainer
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from flows.searching.training_plan import TrainingPlan
from tasks.measure import measurement_of


class Workshop:
    """What appraises, makes and trains the candidates of one setup, and keeps one tally."""

    def __init__(self, setup: SearchSetup, tally: Tally) -> None:
        self.setup, self.tally, self.plan = setup, tally, TrainingPlan(setup, tally.candidates)
        self.appraisal = Appraisal(setup, measurement_of(tally.baseline), self.plan)
        forms = FormMaker(setup, tally, self.appraisal)
        self.maker = CandidateMaker(setup, tally, self.appraisal, forms)
        self.trainer = RungTrainer(self.plan, tally, self.appraisal, forms)
