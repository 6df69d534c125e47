"""The gradient of Einsum.

With y = einsum("ab,bc->ac", x, w): dx = einsum("ac,bc->ab", dy, w), the term of x and that of y swapped. A letter that stands
in no other term was summed over x alone: a vector of ones spreads dy along it. A letter that stands in a term twice took the
diagonal: an identity matrix puts dy back there.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence

from ..builder import Dim, Tensor
from .broadcast import sum_to
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]


def einsum(g: Adjoint) -> Gradients:
    """y = the sum of products of the inputs' elements, as the equation says."""
    operands = [tensor for tensor in g.inputs if tensor is not None]
    terms, result = _parse(g, operands)
    return [_operand_gradient(g, operands, terms, result, index) for index in range(len(operands))]


def _parse(g: Adjoint, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """The term of each operand and that of the result, ellipses replaced by letters of their own."""
    equation = g.attribute("equation", "").replace(" ", "")
    inputs, arrow, result = equation.partition("->")
    terms = inputs.split(",")
    if not arrow:
        letters = inputs.replace(",", "").replace(".", "")
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        result = ("..." if "..." in inputs else "") + "".join(once)
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    ranks = [_ellipsis_rank(g, term, tensor) for term, tensor in zip(terms, operands, strict=True)]
    batch = "".join(spare[: max(ranks)])
    terms = [term.replace("...", batch[len(batch) - rank :]) for term, rank in zip(terms, ranks, strict=True)]
    return terms, result.replace("...", batch)


def _ellipsis_rank(g: Adjoint, term: str, tensor: Tensor) -> int:
    if "..." not in term:
        return 0
    if tensor.rank is None:
        raise g.unsupported("the rank of an operand with an ellipsis is unknown")
    return tensor.rank - (len(term) - len("..."))


def _operand_gradient(
    g: Adjoint, operands: Sequence[Tensor], terms: Sequence[str], result: str, index: int
) -> Tensor:
    x, term = operands[index], terms[index]
    others = [(terms[i], operands[i]) for i in range(len(operands)) if i != index]
    factors, target = [(result, g.dy), *others], ""
    spare: Iterator[str] = iter(
        letter for letter in string.ascii_letters if letter not in "".join([result, *terms])
    )
    for axis, letter in enumerate(term):
        if letter in target:
            twin = next(spare)
            factors.append((letter + twin, _identity(x, axis)))
            letter = twin
        elif not any(letter in other for other, _ in factors):
            factors.append((letter, _ones(x, axis)))
        target += letter
    equation = f"{','.join(letters for letters, _ in factors)}->{target}"
    full = g.builder.op("Einsum", *(tensor for _, tensor in factors), equation=equation)
    return sum_to(full, x, [_dim(letter, terms, operands) for letter in term], [None])


def _dim(letter: str, terms: Sequence[str], operands: Sequence[Tensor]) -> Dim:
    """The length that a letter stands for; None where its axes have different symbols, some of which may turn out as 1."""
    found = {
        tensor.dims[term.index(letter)] if tensor.dims is not None else None
        for term, tensor in zip(terms, operands, strict=True)
        if letter in term
    }
    if len(found) > 1:
        return next((dim for dim in found if isinstance(dim, int) and dim != 1), None)
    return found.pop()


def _ones(x: Tensor, axis: int) -> Tensor:
    ones = x.builder.constant([1.0], x.dtype)
    return x.builder.op("Expand", ones, x.builder.concat(x.length(axis)))


def _identity(x: Tensor, axis: int) -> Tensor:
    numbers = x.builder.arange(x.length(axis))
    return numbers.unsqueeze(1).equals(numbers).cast_like(x)
