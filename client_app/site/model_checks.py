"""What a model must be for a server to generate it: checked alike for a site's own and for those of a simulation."""

from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from client_app.site.site import GeneratedModel
from common.errors import UserError
from common.inputs import dtype
from common.text import nearest


def generated(
    model: nn.Module, called: str, keep_local: tuple[str, ...] = (), freeze: tuple[str, ...] = ()
) -> GeneratedModel:
    """The model with these patterns of layers that are not generated.

    Raises UserError with one sentence, which begins with the key or with what the model is `called`.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    lazy = [name for name, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise UserError(
            f"{called}: {lazy[0]!r} has no size yet, because its layer is lazy: let the factory run the model on one "
            "batch, or give the layer its size."
        )
    parameters = dict(model.named_parameters())
    if not parameters:
        raise UserError(f"{called}: it has no parameters, so there is nothing to generate.")
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise UserError(f"{called}: parameter {name!r} is {dtype(parameter)}, but must be floating point.")
        if not parameter.requires_grad and not matches(name, freeze):
            raise UserError(
                f"{called}: parameter {name!r} has requires_grad False: list it under freeze, or let it train."
            )
    other_state = [key for key, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if other_state:
        raise UserError(f"{called}: {other_state[0]!r} of its state_dict is not a tensor, so the state cannot be kept.")
    for key, patterns in (("keep-local", keep_local), ("freeze", freeze)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise UserError(
                    f"{key}: pattern {pattern!r} matches no parameter{nearest(pattern, list(parameters))}; the "
                    f"{called} has {', '.join(parameters)}."
                )
    if all(matches(name, keep_local + freeze) for name in parameters):
        raise UserError(
            f"keep-local, freeze: together they match every parameter of the {called}, so there is nothing to generate."
        )
    return GeneratedModel(model, keep_local, freeze)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a parameter's name fits one of these shell-style patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
