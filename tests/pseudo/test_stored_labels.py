"Labels by id: who looks when, what a batch gets of them, and the phases of a pre-training"
import pytest
import torch

from contract import fit, learner
from labelkit.data.samples import predict_unlabeled
from labelkit.parts.rounds import Rounds
from labelkit.pseudo.stored_labels import InPhases, StoredLabels
from mix.mixtools import Keep


class InRounds(StoredLabels):
    "All that the network says, in two rounds"
    def setup(self):
        super().setup()
        self.schedule = Rounds(2, warmup=.5)

    def relabel(self):
        ids,logits = predict_unlabeled(self.learn)
        self.pseudo_label[ids] = logits.argmax(1)

    def before_forward(self, s):
        if self.schedule.done: s.forward(self.name, s.unlabeled_inputs)


def test_a_batch_gets_its_own_labels():
    fit(learner([cb := InRounds(), keep := Keep()]), 4)
    quiet = [s for s in keep.seen if cb.name not in s.losses]
    assert len(quiet) == len(keep.seen)//2 and cb.schedule.done == 2
    s = keep.seen[-1]
    label = cb.stored(s)
    assert torch.equal(label, cb.pseudo_label[s.unlabeled_ids]) and (label >= 0).all()
    loss = torch.nn.functional.cross_entropy(s.outputs[cb.name], label)
    torch.testing.assert_close(s.losses[cb.name][0], loss)
    assert (cb.pseudo_label[cb.dls.given >= 0] == -1).all()


def test_what_a_technique_has_to_say():
    class Silent(StoredLabels):
        def setup(self):
            super().setup()
            self.schedule = Rounds(1)
    with pytest.raises(NotImplementedError, match="overrides relabel"): fit(learner([Silent()]))


@pytest.mark.parametrize("both", [False, True])
def test_the_second_phase_is_of_a_fresh_network(both):
    "It begins with the weights of the beginning, and the labels have no part, or their own"
    class Watched(InPhases):
        first = pretrain = .5
        together = both
        def relabel(self):
            ids,logits = predict_unlabeled(self.learn)
            self.pseudo_label[ids] = logits.argmax(1)
        def before_steps(self):
            super().before_steps()
            heads.append(self.learn.model.head.weight.detach().clone())
    heads = []
    fit(learner([cb := Watched(), keep := Keep()]), 2)
    assert torch.equal(heads[0], heads[1])
    assert [s.labeled_weight for s in keep.seen] == [1]*4 + [float(both)]*4
    assert [cb.name in s.losses for s in keep.seen] == [False]*4 + [True]*4


def test_a_teacher_takes_the_place_of_the_first_phase():
    class Two(InPhases):
        first = .25
        pretrain = .5
    cb = Two()
    assert cb.shares == (.25, .5, .25)
    cb.teacher = torch.nn.Identity()
    assert cb.shares == (0., .5, .5)
