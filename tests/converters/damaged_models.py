"""Converts and trains many damaged copies of a model, in a process of its own, so that an abort would end only that.

Usage: python damaged_models.py SEED COUNT FOLDER; prints how many trained and were refused, and every other outcome.
"""

from __future__ import annotations

import random
import sys
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

import gradfuse
from gradfuse.graph import GradfuseError

TEXT = """
<ir_version: 8, opset_import: ["" : 16, "local" : 1]>
g (float[batch, 1, 8, 8] x, int64[batch] token) => (float[batch, 3] y) {
    c = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, kernel)
    n = BatchNormalization (c, scale, shift, mean, variance)
    r = local.Act (n)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    s = Shape (p)
    zero = Constant <value = int64 {0}> () axis = Constant <value = int64[1] {0}> ()
    b = Gather (s, zero) b1 = Unsqueeze (b, axis) rest = Constant <value = int64[1] {-1}> ()
    shape = Concat <axis = 0> (b1, rest)
    f = Reshape (p, shape)
    d = Dropout (f, half)
    m = Gemm <transB = 1> (d, dense, offset)
    e = Gather (table, token)
    flag = Constant <value = bool {1}> ()
    divisor = If (flag) <
        then_branch = t () => (int64[4] t1) { t1 = Add (three, s) },
        else_branch = o () => (int64[4] o1) { o1 = Identity (three) }
    >
    h = Div (s, divisor) w = ReduceSum <keepdims = 0> (h) g1 = Cast <to = 1> (w)
    i = Add (m, e) z = Mul (i, g1)
    y = LogSoftmax <axis = 1> (z)
}
<opset_import: ["" : 16], domain: "local"> Act (a) => (b) { b = Relu (a) }
"""
DATA = {
    "x": np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32),
    "token": np.array([0, 1, 2, 4]),
    "y": np.array([0, 1, 2, 0]),
}
WEIGHTS = {
    "kernel": (2, 1, 3, 3),
    **dict.fromkeys(("scale", "shift", "mean", "variance"), (2,)),
    "dense": (3, 32),
    "offset": (3,),
    "table": (5, 3),
}


def model() -> onnx.ModelProto:
    """A model with a little of everything."""
    proto = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        array = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for name, value in (("half", np.float32(0.5)), ("three", np.array([3, 3, 3, 3]))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return proto


def damage(data: bytes, rng: random.Random) -> bytes:
    """A copy with a few bytes, or a field or two, changed."""
    if rng.random() < 0.4:
        return _damage_bytes(bytearray(data), rng)
    proto = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice([1, 1, 2])):
        _damage_field(proto, rng)
    return proto.SerializeToString()


def _damage_bytes(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.2:
        start = rng.randrange(len(data))
        del data[start : start + rng.randrange(40)]
    return bytes(data)


def _damage_field(message: onnx.ModelProto, rng: random.Random) -> None:
    """Walk down to a random field, and change it."""
    parent = message
    while True:
        field, value = rng.choice(parent.ListFields())
        items = list(value) if field.is_repeated else [value]
        item = rng.choice(items) if items else None
        if hasattr(item, "ListFields") and item.ListFields() and rng.random() < 0.85:
            parent = item
            continue
        break
    kind = rng.randrange(4)
    if kind == 0:
        parent.ClearField(field.name)
    elif field.is_repeated:
        _damage_list(value, rng)
    elif isinstance(value, int) and not isinstance(value, bool):
        _set(parent, field.name, rng.choice([0, 1, -1, 2, 7, 10, 11, 2**31 - 1, -(2**31), 2**40, -(2**62)]))
    elif isinstance(value, str):
        _set(
            parent,
            field.name,
            rng.choice(["", "x", "c", "\x1b[31m", "Conv", "If", "Loop", "a" * 5000, "ai.onnx", "half"]),
        )
    elif isinstance(value, float):
        _set(parent, field.name, rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e38]))
    elif isinstance(value, bytes):
        _set(parent, field.name, value[: rng.randrange(len(value) + 1)])


def _set(parent: onnx.ModelProto, name: str, value: object) -> None:
    try:
        setattr(parent, name, value)
    except ValueError:  # a field of 32 bits
        setattr(parent, name, 3)


def _damage_list(items: list[object], rng: random.Random) -> None:
    index = rng.randrange(len(items))
    kind = rng.randrange(3)
    if kind == 0:
        del items[index]
    elif hasattr(items[index], "ListFields"):
        items.append(rng.choice(list(items)))
    elif isinstance(items[index], int):
        items[index] = rng.choice([0, -1, 1, 5, 2**31, 2**40, -(2**62)])
    elif isinstance(items[index], str):
        items[index] = rng.choice(["", "x", "c", "y", "mean", "three", "\n"])


def outcome(path: Path) -> str:
    """What becomes of a file."""
    try:
        gradfuse.train(path, DATA, epochs=1, batch_size=4, validation=0.0, threads=1)
    except GradfuseError as error:
        return "refused" if len(str(error).splitlines()) == 1 else f"several lines: {error}"
    except BaseException:
        return traceback.format_exc()
    return "trained"


def main(seed: int, count: int, folder: Path) -> None:
    """Damage, convert, count."""
    rng, data, path = random.Random(seed), model().SerializeToString(), folder / "model.onnx"
    assert outcome_of(path, data) == "trained"
    outcomes: Counter[str] = Counter()
    for number in range(count):
        damaged = damage(data, rng)
        sys.stderr.write(f"{number}\n")  # where it was, if it aborts
        outcomes[outcome_of(path, damaged)] += 1
    for what, times in outcomes.most_common():
        sys.stdout.write(f"{times} {what}\n")


def outcome_of(path: Path, data: bytes) -> str:
    """What becomes of a file that holds these bytes."""
    path.write_bytes(data)
    return outcome(path)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
