import numpy as np
import onnx
import onnx_ir as ir

from gradfuse.converters.folding import fold_integers


def fold(body, initializers=""):
    text = f"""
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[batch, 3, 4] x) => (float y) {initializers} {{ {body} }}
    """
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    fold_integers(model)
    onnx.checker.check_model(ir.serde.serialize_model(model))
    values = {name: value.const_value.numpy().tolist() for name, value in model.graph.initializers.items()}
    return [node.op_type for node in model.graph if node.op_type != "Constant"], values


def test_axes_computed_from_constants_become_an_initializer():
    ops, values = fold(
        """one = Constant <value = int64 {1}> ()
           flat = Constant <value_ints = [-1]> ()
           axes = Reshape (one, flat)
           y = ReduceMean (x, axes)"""
    )
    assert ops == ["ReduceMean"]
    assert values == {"axes": [1]}


def test_static_lengths_become_an_initializer_and_dynamic_ones_stay():
    ops, values = fold(
        """tail = Shape <start = 1> (x)
           head = Shape <end = 1> (x)
           shape = Concat <axis = 0> (head, tail)
           z = Reshape (x, shape)
           y = ReduceMean <keepdims = 0> (z)"""
    )
    assert ops == ["Shape", "Concat", "Reshape", "ReduceMean"]
    assert values == {"tail": [3, 4]}


def test_weights_are_never_folded():
    ops, values = fold(
        "t = Transpose (weight) z = Add (x, t) y = ReduceMean <keepdims = 0> (z)",
        "<float[4, 1] weight = {1, 2, 3, 4}>",
    )
    assert ops == ["Transpose", "Add", "ReduceMean"]
    assert list(values) == ["weight"]


def test_random_integers_are_never_folded():
    ops, _ = fold(
        """p = Constant <value = float[2] {0.5, 0.5}> ()
           coin = Bernoulli <dtype = 7> (p)
           f = Cast <to = 1> (coin)
           m = ReduceMax <keepdims = 0> (f)
           n = ReduceMean <keepdims = 0> (x)
           y = Add (m, n)"""
    )
    assert "Bernoulli" in ops


def test_a_folded_chain_keeps_its_value():
    _, values = fold(
        """a = Shape <start = 1, end = 3> (x)
           two = Constant <value = int64 {2}> ()
           b = Mul (a, two)
           i = Constant <value = int64[1] {1}> ()
           c = Gather (b, i)
           d = Cast <to = 1> (c)
           s = ReduceSum <keepdims = 0> (d)
           n = ReduceMean <keepdims = 0> (x)
           y = Add (n, s)"""
    )
    assert values == {"c": [8]}
    assert np.prod(values["c"]) == 8
