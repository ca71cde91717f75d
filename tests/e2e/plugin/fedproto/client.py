"""FedProto's client half (Tan et al. 2022): cross-entropy, and the distance to the mean prototype of the class."""

from dataclasses import dataclass

import torch
from fedproto.server import prototypes
from torch.nn.functional import cross_entropy

from client_app.methods.base import ClientMethod, Outcome, exchange
from client_app.representation import head_of, recorded, representations
from common.options import option
from common.settings import LocalTraining


class FedProto(ClientMethod):
    @dataclass(frozen=True, kw_only=True)
    class Settings(LocalTraining):
        prototype_weight: float = option(1.0, "lambda: weight of the distance to the prototypes", minimum=0)

    def facts(self, site):
        head = head_of(site.personal.model)
        return {"num-classes": head.out_features, "width": head.in_features}

    def receives(self, exchange, site):
        return prototypes(self.facts(site))

    def load(self, task):
        task.site.personal.load_all(task.store.load("model"))

    @exchange
    def personal(self, task):
        model, head = task.site.personal.model, head_of(task.site.personal.model)
        unknown = torch.full_like(head.weight, torch.nan).detach()  # [C, d], of classes without a prototype
        means = unknown.index_copy(0, task.arrays["labels"], task.arrays["prototypes"])
        with recorded(head) as seen:
            mean_loss = task.train(model, self.settings, lambda *batch: self.loss(seen.pop(), means, *batch))
        task.store.save("model", dict(model.state_dict()))
        features, labels = representations(model, task.site.train)
        own = torch.stack([features[labels == label].mean(dim=0) for label in labels.unique()])
        return Outcome({"labels": labels.unique(), "prototypes": own}, mean_loss)

    def loss(self, features, means, outputs, targets, indices):
        distance = torch.nan_to_num(features - means[targets]).square().mean()
        return cross_entropy(outputs, targets) + self.settings.prototype_weight * distance
