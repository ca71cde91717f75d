"""FedProto's server half (Tan et al. 2022): class prototypes come up, their means go down, models stay with clients."""

import torch

from common.schema import Array, UpTo, Whole
from server_app.methods.base import Exchange, Method


class FedProto(Method):
    client = "fedproto.client:FedProto"
    saved = ("prototypes",)
    facts = {"num-classes": Whole(2, 1000, required=True), "width": Whole(1, 4096, required=True)}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.prototypes = {}  # class -> P_c [d]

    def round(self, cohort):
        replies = yield Exchange("personal", cohort, self.means, lambda each: prototypes(each.facts), deploys=True)
        if replies:
            labels, rows = (torch.cat(list(replies.of(name).values())) for name in ("labels", "prototypes"))
            self.prototypes |= {int(label): rows[labels == label].mean(dim=0) for label in labels.unique()}

    def deploy(self, clients):
        yield Exchange("deploy", clients, self.means, deploys=True)

    def means(self, clients):
        labels = torch.tensor(list(self.prototypes), dtype=torch.int64)
        rows = [torch.empty(0, clients[0].facts["width"]), *(each[None] for each in self.prototypes.values())]
        return {client.key: {"labels": labels, "prototypes": torch.cat(rows)} for client in clients}


def prototypes(facts):
    n = UpTo("n", facts["num-classes"])
    return {"labels": Array((n,), "int64", below=n.most), "prototypes": Array((n, facts["width"]))}
