"""MH-pFedHNG's and MH-pFedHNGD's client: the loss against NumPy, the teacher against a training written out by hand."""

import numpy as np
import pytest
import torch
from asking import (
    ALWAYS_TOLD,
    CLASSES,
    GD,
    SETTINGS,
    SHAPE,
    TRAINING,
    ask,
    ask_globally,
    ask_to_evaluate,
    ask_to_keep_teacher,
    greeting,
    handled,
    kept,
    random_theta,
    registered,
    request,
    site,
    stored,
    theta_for,
    trainer,
)
from fresh_process import new_process
from site_files import VISION, load
from torch.nn import functional

from client_app.methods.mh_pfedhn_gd import distillation_loss
from client_app.resident.serving import trainer_of
from client_app.training import cross_entropy, epochs, sgd, train
from common import protocol
from common.arrays import decode_arrays, encode_arrays
from common.errors import ProtocolError
from common.models import build_model
from common.params import ParameterVector
from common.schema import Vector

G = "mh-pfedhn-g"
K_G = "global-num-params"


# The loss


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def loss_by_numpy(student, labels, teacher, temperature, coefficient):
    """Equation 8 in float64, as the authors' code weighs its terms."""
    student, teacher = student.astype(np.float64), teacher.astype(np.float64)
    cross_entropy = -log_softmax(student)[np.arange(len(labels)), labels].mean()
    of_teacher, of_student = log_softmax(teacher / temperature), log_softmax(student / temperature)
    divergence = (np.exp(of_teacher) * (of_teacher - of_student)).sum(axis=1).mean()
    return (1 - coefficient) * cross_entropy + coefficient * temperature**2 * divergence


def logits_of(scale, seed, rows=6, classes=5):
    return (scale * np.random.default_rng(seed).standard_normal((rows, classes))).astype(np.float32)


LABELS = np.array([0, 1, 2, 3, 4, 4])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0, 15.0, 24.0])
@pytest.mark.parametrize("coefficient", [0.0, 0.01, 0.2, 0.5, 1.0])
def test_the_loss_is_equation_8(temperature, coefficient):
    student, teacher = logits_of(3, 0), logits_of(3, 1)
    loss = distillation_loss(*map(torch.from_numpy, (student, LABELS, teacher)), temperature, coefficient)
    assert loss.item() == pytest.approx(loss_by_numpy(student, LABELS, teacher, temperature, coefficient), rel=2e-5)


def test_the_loss_of_two_samples_by_hand():
    # Teacher undecided, student 3 to 1: CE is ln(4/3) or ln 4, KL is ln(4/3) / 2.
    student = torch.tensor([[np.log(3.0), 0.0], [np.log(3.0), 0.0]], dtype=torch.float32)
    labels, teacher = torch.tensor([0, 1]), torch.zeros(2, 2)
    cross_entropy = (np.log(4 / 3) + np.log(4)) / 2
    divergence = np.log(4 / 3) / 2
    for coefficient in (0.0, 0.25, 1.0):
        expected = (1 - coefficient) * cross_entropy + coefficient * divergence
        assert distillation_loss(student, labels, teacher, 1.0, coefficient).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 15.0])
def test_the_loss_of_logits_of_200_is_finite_and_right(temperature):
    student = np.tile(np.array([200, -200, 0, 199, -200], np.float32), (6, 1))
    teacher = -student
    naive = torch.from_numpy(student).softmax(1).log()
    assert torch.isinf(naive).any()  # how the authors' code has it
    tensors = [torch.from_numpy(each) for each in (student, LABELS, teacher)]
    tensors[0].requires_grad_()
    loss = distillation_loss(*tensors, temperature, 0.2)
    assert loss.item() == pytest.approx(loss_by_numpy(student, LABELS, teacher, temperature, 0.2), rel=1e-5)
    loss.backward()
    assert torch.isfinite(tensors[0].grad).all()


@pytest.mark.parametrize("temperature", [1.0, 15.0])
@pytest.mark.parametrize("scale", [3, 200])
def test_without_distillation_the_loss_is_the_cross_entropy(temperature, scale):
    student, labels, teacher = (torch.from_numpy(each) for each in (logits_of(scale, 0), LABELS, logits_of(scale, 1)))
    loss = distillation_loss(student, labels, teacher, temperature, 0.0)
    assert torch.equal(loss, functional.cross_entropy(student, labels))


def test_the_divergence_of_a_student_that_agrees_with_its_teacher_is_zero():
    student, labels = torch.from_numpy(logits_of(3, 0)), torch.from_numpy(LABELS)
    assert distillation_loss(student, labels, student + 7.0, 15.0, 1.0).item() == pytest.approx(0, abs=1e-4)
    # and not the other way round: KL is not symmetric
    other = torch.from_numpy(logits_of(3, 1))
    forth, back = (distillation_loss(a, labels, b, 1.0, 1.0) for a, b in ((student, other), (other, student)))
    assert abs(forth - back) > 0.1


@pytest.mark.parametrize(("temperature", "coefficient"), [(1.0, 0.5), (15.0, 0.2), (15.0, 1.0), (2.0, 0.0)])
def test_the_gradient_is_that_of_a_finite_difference(temperature, coefficient):
    student, teacher = logits_of(2, 0, rows=2), logits_of(2, 1, rows=2)
    labels = LABELS[:2]
    variable = torch.from_numpy(student).requires_grad_()
    distillation_loss(
        variable, torch.from_numpy(labels), torch.from_numpy(teacher), temperature, coefficient
    ).backward()
    step = 1e-5
    expected = np.zeros(student.shape)
    for place in np.ndindex(student.shape):
        moved = np.zeros(student.shape)
        moved[place] = step
        up, down = (
            loss_by_numpy(student + side * moved, labels, teacher, temperature, coefficient) for side in (1, -1)
        )
        expected[place] = (up - down) / (2 * step)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(variable.grad.numpy(), expected, rtol=1e-3, atol=1e-5)


# The teacher


def global_model_of(run_config, w_g, name="lenet", statistics=None):
    """The global model as the server means it: w_g on top of the seeded initialisation."""
    model = build_model(name, SHAPE, CLASSES, seed=0)
    vector = ParameterVector(model)
    vector.write(vector.read() + w_g)
    model.load_state_dict(statistics or {}, strict=False)
    return model.eval()


def trained(model, fresh, server_round=1, purpose="", loss=cross_entropy):
    """Train a model on a site's samples by hand; the mean loss."""
    generator = fresh.generator(0, server_round, purpose)
    batches = epochs(len(fresh.train), 8, 1, generator)
    return train(model, fresh.train, batches, sgd(model.parameters(), TRAINING), generator, 50.0, loss)


def distilled_by_hand(run_config, client, theta, teacher, server_round=1):
    """delta_i of a personal exchange with this teacher; without one, of plain training."""
    fresh = site(run_config, client)
    fresh.personal.parameters.write(fresh.personal.anchor + theta)
    if teacher is not None:
        with torch.no_grad():
            said = teacher(fresh.train.batch(torch.arange(len(fresh.train)))[0])

    def loss(logits, labels, indices):
        cross_entropy = functional.cross_entropy(logits, labels)
        if teacher is None:
            return cross_entropy
        temperature, coefficient = SETTINGS["temperature"], SETTINGS["distillation_coefficient"]
        target = (said[indices] / temperature).softmax(1)
        divergence = (target * (target.log() - (logits / temperature).log_softmax(1))).sum(1).mean()
        return (1 - coefficient) * cross_entropy + coefficient * temperature**2 * divergence

    trained(fresh.personal.model, fresh, server_round, loss=loss)
    return fresh.personal.anchor + theta - fresh.personal.parameters.read()


def size_of(name):
    return ParameterVector(build_model(name, SHAPE, CLASSES, seed=0)).size


def w_g_for(name="lenet", seed=5):
    """A global model that disagrees with its initialisation, so that teachers differ clearly."""
    return random_theta(size_of(name), seed, scale=0.1)


@pytest.fixture(params=["in the same process", "after a restart", "after other requests"])
def between(request, run_config):
    """What happens between the two exchanges of a round."""

    def happen():
        if request.param == "after a restart":
            new_process()
        if request.param == "after other requests":
            ask_globally(run_config, 2, w_g_for(seed=8), client_lr=0.1)
            ask(run_config, 2, theta_for(site(run_config, 2)), method=GD, teacher_round=1)
            ask_to_evaluate(run_config, 0, theta_for(site(run_config, 0), seed=9))

    return happen


@pytest.mark.parametrize("client", [0, 1], ids=["of the global architecture", "of another architecture"])
def test_the_teacher_is_w_g_as_it_came_and_not_as_it_was_trained(run_config, between, client):
    w_g, theta = w_g_for(), theta_for(site(run_config, client))
    _, delta_g = ask_globally(run_config, client, w_g)
    between()
    _, delta = ask(run_config, client, theta, method=GD, teacher_round=1)
    by_hand = distilled_by_hand(run_config, client, theta, global_model_of(run_config, w_g))
    torch.testing.assert_close(delta, by_hand, rtol=0, atol=2e-6)
    for wrong in (
        distilled_by_hand(run_config, client, theta, global_model_of(run_config, w_g - delta_g)),  # as trained
        distilled_by_hand(run_config, client, theta, global_model_of(run_config, 0 * w_g)),  # theta_0 alone
        distilled_by_hand(run_config, client, theta, None),
    ):
        assert (delta - wrong).abs().max() > 1e-4


def test_without_the_anchor_the_teacher_is_w_g_alone(run_config):
    w_g, theta = w_g_for(), theta_for(site(run_config, 1))
    ask_to_keep_teacher(run_config, 1, w_g, anchor=False)
    _, delta = ask(run_config, 1, theta, method=GD, teacher_round=1, anchor=False)
    theta_0 = ParameterVector(build_model("lenet", SHAPE, CLASSES, seed=0)).read()
    own_0 = site(run_config, 1).personal.anchor
    teacher = global_model_of(run_config, w_g - theta_0)
    torch.testing.assert_close(delta, distilled_by_hand(run_config, 1, theta - own_0, teacher), rtol=0, atol=2e-6)


def test_temperature_and_coefficient_are_the_servers(run_config):
    theta = theta_for(site(run_config, 1))
    ask_globally(run_config, 1, w_g_for())
    usual = ask(run_config, 1, theta, method=GD, teacher_round=1)[1]
    for change in ({"temperature": 1.0}, {"distillation_coefficient": 0.1}):
        assert not torch.equal(usual, ask(run_config, 1, theta, method=GD, teacher_round=1, **change)[1])


def error_of(function, *arguments, **options):
    with pytest.raises(ProtocolError) as caught:
        function(*arguments, **options)
    return caught.value


def test_a_teacher_that_is_missing_or_of_another_round_is_refused(run_config):
    theta = theta_for(site(run_config, 1))

    def ask_with_teacher_of(round_of_teacher):
        return ask(run_config, 1, theta, method=GD, server_round=9, teacher_round=round_of_teacher)

    error = error_of(ask_with_teacher_of, 1)
    assert error.reason == "no-teacher"
    assert error.detail == "this client has not kept the global model of round 1"
    assert not stored(run_config, 1).exists()
    ask_globally(run_config, 1, w_g_for(), server_round=4)
    for other in (3, 5):
        assert error_of(ask_with_teacher_of, other).reason == "no-teacher"
    assert ask_with_teacher_of(4)[1].norm() > 0
    ask_globally(run_config, 1, w_g_for(), server_round=5)
    assert error_of(ask_with_teacher_of, 4).reason == "no-teacher"
    assert error_of(ask, run_config, 3, theta, method=GD, teacher_round=5).reason == "no-teacher"  # another client's
    assert error_of(ask, run_config, 1, theta, method=GD, teacher_round=5, run_name="other").reason == "no-teacher"


def test_the_exchange_that_hands_out_a_teacher_keeps_it_and_sends_nothing(run_config):
    w_g, theta = w_g_for(), theta_for(site(run_config, 1))
    reply = ask_to_keep_teacher(run_config, 1, w_g, upload="topk", error_feedback=True)
    assert {name: set(record) for name, record in reply.items()} == {"metrics": {"num-examples"}}
    assert {path.name for path in stored(run_config, 1).iterdir()} == {"history.json", "teacher.000001.pt"}
    new_process()
    _, delta = ask(run_config, 1, theta, method=GD, teacher_round=1)
    by_hand = distilled_by_hand(run_config, 1, theta, global_model_of(run_config, w_g))
    torch.testing.assert_close(delta, by_hand, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", [G, "mh-pfedhn", "local"])
def test_only_the_method_that_distils_hands_out_teachers(run_config, method):
    error = error_of(ask, run_config, 0, w_g_for(), method=method, exchange="keep_teacher")
    assert error.reason == "malformed"
    assert f"method {method!r} has no exchange 'keep_teacher' here" in error.detail


@pytest.mark.parametrize("bad", ["missing", "two", "a number of another type", "for a test"])
def test_a_personal_exchange_says_of_one_round_that_its_teacher_is_of_it(run_config, bad):
    theta = theta_for(site(run_config, 1))
    content = request(theta, method=GD, **({"exchange": "deploy"} if bad == "for a test" else {}))
    wrong = {
        "two": torch.tensor([1, 2]),
        "a number of another type": torch.tensor([1.0]),
        "for a test": torch.tensor([1]),
    }
    arrays = {"theta": theta} | ({"teacher-round": wrong[bad]} if bad in wrong else {})
    content["arrays"] = encode_arrays(arrays)
    reasons = {"two": "wrong-length", "a number of another type": "wrong-dtype"}
    assert error_of(handled, trainer(run_config, 1), content).reason == reasons.get(bad, "malformed")


@pytest.mark.parametrize("changes", [{"method": G}, {"method": GD, "distillation_coefficient": 0.0}], ids=str)
def test_without_distillation_no_teacher_is_kept(run_config, changes):
    result, delta = ask_globally(run_config, 1, w_g_for(), **changes)
    assert delta.shape == (size_of("lenet"),)
    assert delta.norm() > 0
    assert result.evaluations == {}
    assert [path.name for path in stored(run_config, 1).iterdir()] == ["history.json"]
    theta = theta_for(site(run_config, 1))
    teacher = {"teacher_round": 1} if changes["method"] == GD else {}
    plain = ask(run_config, 1, theta, method="mh-pfedhn")[1]
    assert torch.equal(ask(run_config, 1, theta, **teacher, **changes)[1], plain)


# The global exchange


def test_delta_g_is_what_was_sent_minus_what_training_made_of_it(run_config):
    w_g = w_g_for()
    result, delta = ask_globally(run_config, 1, w_g)
    model = global_model_of(run_config, w_g).to(memory_format=torch.channels_last)
    sent = ParameterVector(model).read()
    fresh = site(run_config, 1)
    loss = trained(model, fresh, purpose="/global")
    assert torch.equal(delta, sent - ParameterVector(model).read())
    assert (result.train_loss, result.num_examples) == (loss, len(fresh.train))


def test_personal_training_draws_other_numbers_than_the_global_one_of_the_same_round(run_config):
    # The same architecture, weights and samples: what differs is the order of the samples.
    theta = w_g_for()
    everything = {"method": G}
    in_one_batch = everything | {"batch_size": 1000}
    globally, personally = (each(run_config, 0, theta, **in_one_batch)[1] for each in (ask_globally, ask))
    torch.testing.assert_close(globally, personally, rtol=0, atol=1e-5)
    globally, personally = (each(run_config, 0, theta, **everything)[1] for each in (ask_globally, ask))
    assert (globally - personally).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["lenet", "resnet10"])
def test_a_global_exchange_leaves_personal_training_without_teacher_as_it_is(run_config, architecture):
    config = run_config | {"models": architecture}
    theta = theta_for(site(config))
    alone = [ask(config, 0, theta, server_round=server_round) for server_round in (1, 2)]
    new_process()
    config |= {"results-dir": config["results-dir"] + "-other"}
    for server_round, (result, delta) in zip((1, 2), alone, strict=True):
        ask_globally(config, 0, w_g_for(architecture), server_round=server_round, global_model=architecture)
        other, other_delta = ask(config, 0, theta, method=GD, server_round=server_round)
        assert result == other
        assert torch.equal(delta, other_delta)


def kept_globally(run_config, client):
    return kept(run_config, client, "global-kept")


def test_batch_norm_statistics_of_the_global_model_stay_with_the_client(run_config):
    resnet = {"global_model": "resnet10"}
    w_g, theta = 0.1 * w_g_for("resnet10"), theta_for(site(run_config, 1))
    _, delta = ask_globally(run_config, 1, w_g, **resnet)
    assert delta.shape == (size_of("resnet10"),)
    first = kept_globally(run_config, 1)
    assert set(first) == {name for name, _ in build_model("resnet10", SHAPE, CLASSES, seed=0).named_buffers()}

    # The teacher has the statistics that the client's own data left in the global model.
    _, distilled = ask(run_config, 1, theta, method=GD, teacher_round=1, **resnet)
    teacher = global_model_of(run_config, w_g, "resnet10", first)
    by_hand = distilled_by_hand(run_config, 1, theta, teacher)
    torch.testing.assert_close(distilled, by_hand, rtol=0, atol=2e-6)
    unprepared = global_model_of(run_config, w_g, "resnet10")
    assert (distilled - distilled_by_hand(run_config, 1, theta, unprepared)).abs().max() > 1e-4
    assert all(torch.equal(tensor, first[name]) for name, tensor in kept_globally(run_config, 1).items())

    # The next round starts from them, in another process too, and whatever other clients have done.
    ask_globally(run_config, 3, w_g, **resnet)
    new_process()
    ask_globally(run_config, 1, w_g, server_round=2, **resnet)
    model = global_model_of(run_config, w_g, "resnet10", first).to(memory_format=torch.channels_last)
    fresh = site(run_config, 1)
    trained(model, fresh, 2, "/global")
    second = kept_globally(run_config, 1)
    assert all(torch.equal(tensor, second[name]) for name, tensor in model.named_buffers())
    assert not torch.equal(first["1.running_mean"], second["1.running_mean"])
    assert not torch.equal(first["1.running_mean"], kept_globally(run_config, 3)["1.running_mean"])


def test_a_global_round_that_diverged_leaves_the_statistics_of_the_one_before(run_config):
    resnet = {"global_model": "resnet10"}
    w_g = 0.1 * w_g_for("resnet10")
    ask_globally(run_config, 1, w_g, **resnet)
    first = kept_globally(run_config, 1)
    diverging = {"server_round": 2, "client_lr": 1e30, "client_momentum": 0.0}
    content = request(w_g, method=GD, exchange="global_step", **diverging, **resnet)
    reply = handled(trainer(run_config, 1), content)
    assert error_of(decode_arrays, reply, {"delta": Vector(len(w_g))}).reason == "not-finite"
    assert all(torch.equal(tensor, first[name]) for name, tensor in kept_globally(run_config, 1).items())


@pytest.mark.parametrize("method", ["mh-pfedhn", "fedavg", "local"])
def test_a_method_without_a_global_model_has_no_global_exchange(run_config, method):
    error = error_of(ask_globally, run_config, 0, w_g_for(), method=method)
    assert error.reason == "malformed"
    assert error.detail == f"method {method!r} has no exchange 'global_step' here, only deploy, personal"


@pytest.mark.parametrize("name", ["", "alexnet", "lenet/keep-output", "../lenet"])
def test_an_unknown_global_model_is_refused_with_the_known_ones(run_config, name):
    question = greeting(K_G, method=GD, global_model=name)
    for error in (
        error_of(ask_globally, run_config, 0, w_g_for(), global_model=name),
        error_of(trainer(run_config).answer, protocol.REGISTER, question),
    ):
        assert error.reason == "malformed"
        assert "must be one of lenet, vgg8, " in error.detail


@pytest.mark.parametrize("exchange", ["global_step", "keep_teacher"])
@pytest.mark.parametrize(
    ("reason", "theta"),
    [
        ("wrong-length", torch.zeros(5)),
        ("wrong-length", torch.zeros(10**6)),
        ("not-finite", torch.full((size_of("lenet"),), float("nan"))),
        ("malformed", None),
    ],
)
def test_a_bad_global_request_is_refused_by_name_and_leaves_no_trace(run_config, reason, theta, exchange):
    content = request(theta, method=GD, exchange=exchange)
    assert error_of(handled, trainer(run_config, 1), content).reason == reason
    assert not stored(run_config, 1).exists()


# Who deploys the global model


def test_a_client_tells_the_size_of_the_global_model_only_when_the_server_has_one(run_config):
    # Layers that the client keeps are of its personal model: the global one is the same for all.
    config = run_config | {"models": "lenet/keep-output"}
    client = trainer(config, 1)
    told = registered(client, K_G, method=G)
    assert told[K_G] == size_of("lenet") > told["num-params"]
    assert registered(client, K_G, method=GD) == told
    assert registered(client, K_G, method=G, global_model="resnet10")[K_G] == size_of("resnet10")
    # Nobody who is not asked, and no method without a global model, says anything of it.
    for not_told in (registered(client, method=G), registered(client, K_G, method="mh-pfedhn")):
        assert set(not_told) == ALWAYS_TOLD


NOT_DEPLOYED = "this client does not deploy the global model"


def test_a_client_that_does_not_deploy_the_global_model_says_nothing_of_it_and_refuses_it(run_config):
    few = {"gd_fraction": 0.0}
    for method in (G, GD):
        assert set(registered(trainer(run_config, 1), K_G, method=method, **few)) == ALWAYS_TOLD
    theta = theta_for(site(run_config, 1))
    for error in (
        error_of(ask_globally, run_config, 1, w_g_for(), **few),
        error_of(ask_globally, run_config, 1, w_g_for(), method=G, **few),
        error_of(ask_to_keep_teacher, run_config, 1, w_g_for(), **few),
        error_of(ask, run_config, 1, theta, method=GD, teacher_round=1, **few),
    ):
        assert error.reason == "not-deployed"
        assert error.detail == NOT_DEPLOYED
    assert not stored(run_config, 1).exists()
    assert torch.equal(ask(run_config, 1, theta, method=GD, **few)[1], ask(run_config, 1, theta)[1])


def test_a_real_site_that_does_not_deploy_the_global_model_says_nothing_of_it_and_refuses_it(tmp_path):
    private = trainer_of(load(tmp_path, VISION))
    assert set(registered(private, K_G, method=GD)) == ALWAYS_TOLD
    for exchange in ("global_step", "keep_teacher"):
        error = error_of(handled, private, request(w_g_for(), method=GD, exchange=exchange))
        assert error.reason == "not-deployed"
        assert error.detail == NOT_DEPLOYED
    assert not (tmp_path / "state/runs").exists()


def deploying(config, fraction, num_clients=10):
    """The clients that register with a size of the global model."""

    def told(client):
        return registered(trainer(config, client, num_clients), K_G, method=G, gd_fraction=fraction, global_model="mlp")

    return {client for client in range(num_clients) if K_G in told(client)}


def test_four_tenths_of_ten_clients_are_the_same_four_in_every_process(run_config):
    config = run_config | {"models": "mlp"}
    four = deploying(config, 0.4)
    assert len(four) == 4
    new_process()
    torch.manual_seed(99)
    assert deploying(config, 0.4) == four
    assert {frozenset(deploying(config | {"seed": seed}, 0.4)) for seed in range(4)} != {frozenset(four)}
    assert len(deploying(config, 1.0)) == 10


def test_a_global_reply_takes_the_wire_form_that_the_server_asks_for(run_config):
    w_g = w_g_for()
    dense = ask_globally(run_config, 1, w_g)[1]
    for upload in ("half", "int8", "topk"):
        arrived = ask_globally(run_config, 1, w_g, upload=upload)[1]
        assert not torch.equal(arrived, dense)
        assert functional.cosine_similarity(arrived, dense, dim=0) > 0.9
