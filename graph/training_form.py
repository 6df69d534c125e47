"""From the inference form of a forward graph to its training form.

Before                                       After
BatchNormalization(x, s, b, mean, var)       m = ReduceMean(x), v = ReduceMean((x - m)^2), BatchNormalization(x, s, b, m, v),
                                             and nodes that move mean and var towards m and v
Dropout(x, ratio)                            Dropout(x, ratio, true)

The batch's statistics are nodes of their own because ONNX Runtime's kernel for training_mode=1 writes its running statistics
into the buffers of its inputs, which belong to the caller, and because their update differs between frameworks: with
momentum m it is `m old + (1 - m) batch`, where PyTorch takes the unbiased variance of the batch (n / (n - 1) times the
biased one), and ONNX and Keras the biased one. Nodes marked as frozen keep their inference form.

A node marked PER_INSTANCE becomes InstanceNormalization(x, s, b), and its statistics move towards the means over the batch
of each example's mean and variance.
"""

from __future__ import annotations

import onnx_ir as ir

from .builder import Builder, Tensor, where
from .errors import UnsupportedError
from .gradients.normalization import BATCH_STATISTICS, per_channel
from .model import FROZEN, PER_INSTANCE, UNBIASED_VARIANCE, batch_norms
from .source import describe_node

__all__ = ["apply_training_form", "protect_dropout"]


def apply_training_form(builder: Builder) -> dict[str, Tensor]:
    """Rewrite the graph of `builder` in place.

    Returns:
        The new value of each running statistic, by the name of the statistic.
    """
    for node in _active_dropouts(builder.graph):
        node.resize_inputs(3)
        node.replace_input_with(2, builder.constant(True, ir.DataType.BOOL).value)
    state: dict[str, Tensor] = {}
    for node in list(batch_norms(builder.graph)):
        with builder.scope(f"state/{node.name}"):
            _use_batch_statistics(node, builder, state)
    builder.graph.sort()
    return state


def protect_dropout(builder: Builder) -> None:
    """Let every active Dropout's mask be read, by a node that changes nothing where the backward pass has no use for it.

    onnxruntime (seen in 1.32) takes a Dropout whose mask nobody reads for an inference leftover, and removes it.
    """
    for node in _active_dropouts(builder.graph):
        if len(node.outputs) < 2 or not node.outputs[1].uses():
            _read_mask(node, builder)
    builder.graph.sort()


def _active_dropouts(graph: ir.Graph) -> list[ir.Node]:
    nodes = [node for node in graph if node.op_type == "Dropout" and node.domain == ""]
    return [node for node in nodes if FROZEN not in node.metadata_props]


def _read_mask(node: ir.Node, builder: Builder) -> None:
    """y -> where(mask, y, 0)."""
    node.resize_outputs(2)
    y, mask = node.outputs
    mask.name, mask.type = builder.unique_name(f"{node.name}/mask"), ir.TensorType(ir.DataType.BOOL)
    mask.shape = y.shape
    users = tuple(y.uses())
    with builder.scope(f"dropout/{node.name}", node.metadata_props):
        kept = where(builder.tensor(mask), builder.tensor(y), 0.0)
    kept.value.shape = y.shape
    for user, index in users:
        user.replace_input_with(index, kept.value)


def _use_batch_statistics(node: ir.Node, builder: Builder, state: dict[str, Tensor]) -> None:
    x, momentum = builder.tensor(_present(node, 0)), node.attributes.get_float("momentum", 0.9)
    if x.rank is None:
        raise UnsupportedError(
            f"{describe_node(node)} has an input of unknown rank", remedy="export with static ranks"
        )
    _leave_training_mode(node)
    old = [_present(node, index) for index in (3, 4)]
    per_instance = PER_INSTANCE in node.metadata_props
    mean, variance, count = (_instance_statistics if per_instance else _batch_statistics)(x, x.rank)
    if per_instance:
        _become_instance_norm(node)
    else:
        for index, statistic in zip((3, 4), (mean, variance), strict=True):
            node.replace_input_with(index, statistic.value)
        node.metadata_props[BATCH_STATISTICS] = "true"
    if UNBIASED_VARIANCE in node.metadata_props:
        variance = variance * (count / (count - 1))
    for value, statistic in zip(old, (mean, variance), strict=True):
        # A module that is applied twice moves its statistics twice.
        name = value.name or ""
        state[name] = state.get(name, builder.tensor(value)) * momentum + statistic * (1.0 - momentum)


def _batch_statistics(x: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel, and of how many numbers."""
    axes = [0, *range(2, rank)]
    mean = x.mean(axes, keepdims=False)
    variance = (x - per_channel(mean, rank)).square().mean(axes, keepdims=False)
    return mean, variance, x.count(axes)


def _instance_statistics(x: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The means over the batch of each example's mean and biased variance, and of how many numbers those are."""
    axes = list(range(2, rank))
    mean = x.mean(axes)
    variance = (x - mean).square().mean(axes)
    over = [0, *axes]
    return mean.mean(over, keepdims=False), variance.mean(over, keepdims=False), x.count(axes)


def _become_instance_norm(node: ir.Node) -> None:
    node.op_type = "InstanceNormalization"
    node.resize_inputs(3)
    for name in [name for name in node.attributes if name != "epsilon"]:
        del node.attributes[name]


def _leave_training_mode(node: ir.Node) -> None:
    """An exporter's own training form gives way to ours, which computes the same."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise UnsupportedError(
            f"{describe_node(node)}: its running statistics are used in the graph",
            expected="only its first output in use",
            remedy="export the model in inference mode",
        )
    node.resize_outputs(1)
    node.attributes.pop("training_mode", None)


def _present(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise UnsupportedError(f"{describe_node(node)} lacks input {index}")
    return value
