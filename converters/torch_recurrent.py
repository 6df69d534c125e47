"""Recurrent operators that torch's ONNX exporter translates only in part, taken apart before it sees them, or not at all.

It leaves out the dropout between layers, and takes an LSTM with projections for one without. Here several layers with dropout
become single layers with dropouts between them, and an LSTM with projections is written out step by step:

    i, f, g, o = W x + b + R h + c,    c' = sigmoid(f) c + sigmoid(i) tanh(g),    h' = P (sigmoid(o) tanh(c'))

A plain RNN, which it writes out step by step, becomes an RNN node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["recurrent_decompositions", "recurrent_translations"]


def recurrent_decompositions() -> dict[Any, Callable[..., Any]]:
    """What each recurrent operator is made of."""
    import torch

    aten = torch.ops.aten
    plain = (aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
    return {aten.lstm.input: _lstm, **{operator: _layers_of(operator) for operator in plain}}


def recurrent_translations() -> dict[Any, Callable[..., Any]]:
    """The nodes of the operators that the exporter has none for."""
    import torch

    aten = torch.ops.aten
    return {aten.rnn_tanh.input: _rnn("Tanh"), aten.rnn_relu.input: _rnn("Relu")}


def _rnn(activation: str) -> Callable[..., Any]:
    from onnxscript import opset18

    op: Any = opset18

    def translated(
        x: Any,
        state: Any,
        weights: Sequence[Any],
        biases: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, Any]:
        directions, width = 2 if bidirectional else 1, len(weights) // layers
        x = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        last = []
        for index in range(layers):
            places = [index * directions], [(index + 1) * directions], [0]
            first = op.Slice(state, *places)
            layer = weights[index * width : (index + 1) * width]
            w, r, *b = (_of_directions(op, layer, place, directions) for place in range(4 if biases else 2))
            y, h = op.RNN(
                x,
                w,
                r,
                op.Concat(*b, axis=1) if biases else None,
                None,
                first,
                activations=[activation] * directions,
                direction="bidirectional" if bidirectional else "forward",
                hidden_size=state.shape[2],
            )
            x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])
            last.append(h)
        y = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        return y, last[0] if layers == 1 else op.Concat(*last, axis=0)

    return translated


def _of_directions(op: Any, layer: Sequence[Any], place: int, directions: int) -> Any:
    """The weight at this place among those of each direction, `[directions, ...]`."""
    each = [op.Unsqueeze(weight, [0]) for weight in layer[place :: len(layer) // directions]]
    return each[0] if directions == 1 else op.Concat(*each, axis=0)


def _layers_of(operator: Any) -> Callable[..., Any]:
    """GRU and RNN, whose state is one tensor."""

    def decomposed(x: Any, state: Any, weights: Sequence[Any], *options: Any) -> Any:
        if not _drops(*options):
            return NotImplemented
        layer = _single_layer(operator, options)
        y, states = _stacked(x, [state], weights, options, lambda x, h, w: layer(x, h[0], w))
        return y, *states

    return decomposed


def _lstm(x: Any, state: Sequence[Any], weights: Sequence[Any], *options: Any) -> Any:
    import torch

    biases, _, _, _, bidirectional, batch_first = options
    projected = state[0].shape[-1] != state[1].shape[-1]
    if not projected and not _drops(*options):
        return NotImplemented
    layer = _single_layer(torch.ops.aten.lstm.input, options)
    if projected:
        layer = _projected(biases, bidirectional, batch_first)
    y, states = _stacked(x, state, weights, options, layer)
    return y, *states


def _drops(
    biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool
) -> bool:
    return layers > 1 and train and dropout > 0


def _single_layer(operator: Any, options: Sequence[Any]) -> Callable[..., Any]:
    biases, _, _, train, bidirectional, batch_first = options
    return lambda x, state, weights: operator(
        x, state, weights, biases, 1, 0.0, train, bidirectional, batch_first
    )


def _stacked(
    x: Any, state: Sequence[Any], weights: Sequence[Any], options: Sequence[Any], layer: Callable[..., Any]
) -> tuple[Any, list[Any]]:
    """The layers one after the other, with dropout between them.

    Args:
        x: The sequence.
        state: For each kind of state (h, and c of an LSTM) its first value [layers * directions, N, H].
        weights: Those of the first layer's directions, then of the second's, and so on.
        options: What follows the weights in the operator's arguments.
        layer: The output and the last states of one layer.

    Returns:
        The output of the last layer, and for each kind of state its last value.
    """
    import torch

    _, layers, dropout, train, bidirectional, _ = options
    directions, width = 2 if bidirectional else 1, len(weights) // layers
    last = []
    for index in range(layers):
        first = [part.narrow(0, index * directions, directions) for part in state]
        x, *states = layer(x, first, weights[index * width : (index + 1) * width])
        last.append(states)
        if index < layers - 1:
            x = torch.dropout(x, dropout, train)
    return x, [torch.cat(parts) for parts in zip(*last, strict=True)]


def _projected(biases: bool, bidirectional: bool, batch_first: bool) -> Callable[..., Any]:
    """One layer of an LSTM with projections, both directions."""
    import torch

    time, directions = 1 if batch_first else 0, 2 if bidirectional else 1

    def layer(x: Any, state: Sequence[Any], weights: Sequence[Any]) -> tuple[Any, Any, Any]:
        width, results = len(weights) // directions, []
        for index in range(directions):
            first = [part[index] for part in state]
            steps = list(x.unbind(time))[:: -1 if index else 1]
            outputs, last = _steps(steps, first, weights[index * width : (index + 1) * width], biases)
            results.append((torch.stack(outputs[:: -1 if index else 1], time), *last))
        y, h, c = zip(*results, strict=True)
        return torch.cat(y, -1), torch.stack(h), torch.stack(c)

    return layer


def _steps(
    steps: Sequence[Any], state: Sequence[Any], weights: Sequence[Any], biases: bool
) -> tuple[list[Any], tuple[Any, Any]]:
    import torch

    linear: Any = torch.nn.functional.linear
    w, r, *b, p = weights
    (h, c), (wb, rb), outputs = state, b if biases else (None, None), []
    for x in steps:
        i, f, g, o = (linear(x, w, wb) + linear(h, r, rb)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = linear(o.sigmoid() * c.tanh(), p)
        outputs.append(h)
    return outputs, (h, c)
