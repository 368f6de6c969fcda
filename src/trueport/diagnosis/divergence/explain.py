"""What an operation does otherwise than the one in its place."""

from __future__ import annotations

from trueport.diagnosis.divergence.flow import Alignment, Flow, Operation, Origin


def counterpart(operation: Operation, fresh: Flow, alignment: Alignment) -> Operation | None:
    """The operation in the same place of the original's program."""
    places = (alignment.meant.get(name, "") for name in operation.outputs)
    return next((fresh.producers[name] for name in places if name in fresh.producers), None)


def origin_of(operation: Operation, suspect: Flow, fresh: Flow, alignment: Alignment) -> Origin:
    """Where the operation in its place comes from; of one that has none there, where its nearest reader comes from."""
    waiting, seen = [operation], set[str]()
    while waiting:
        current = waiting.pop(0)
        other = counterpart(current, fresh, alignment)
        if other is not None and other.origin.line:
            return other.origin
        seen.add(current.name)
        for name in current.outputs:
            waiting += [reader for reader in suspect.readers.get(name, []) if reader.name not in seen]
    return operation.origin


def explain(operation: Operation, suspect: Flow, fresh: Flow, alignment: Alignment) -> list[str]:
    """Attributes, constants and inputs that differ, in words."""
    other = counterpart(operation, fresh, alignment)
    if other is None:
        return ["the original has no such operation here"]
    if other.kind != operation.kind:
        return [f"the original has {other.kind} here"]
    words = []
    for name in sorted({*operation.attributes, *other.attributes}):
        mine, theirs = operation.attributes.get(name), other.attributes.get(name)
        if mine != theirs:
            words.append(f"{name} is {mine}, the original's is {theirs}")
    for index in range(max(len(operation.inputs), len(other.inputs))):
        mine = operation.inputs[index] if index < len(operation.inputs) else ""
        theirs = other.inputs[index] if index < len(other.inputs) else ""
        words += _input(index, mine, theirs, suspect, fresh, alignment)
    return words


def _input(index: int, mine: str, theirs: str, suspect: Flow, fresh: Flow, alignment: Alignment) -> list[str]:
    one, other = suspect.constants.get(mine), fresh.constants.get(theirs)
    if one is not None and other is not None:
        if one == other:
            return []
        left, right = suspect.shown.get(mine, mine), fresh.shown.get(theirs, theirs)
        return [f"the constant {mine} is {left}, the original's is {right}"]
    if not mine and not theirs:
        return []
    if mine and not theirs:
        return [f"input {index} is {mine}, which the original does not read here"]
    if alignment.equal.get(mine) == theirs or (mine not in alignment.equal and alignment.meant.get(mine) == theirs):
        return []
    producer = fresh.producers.get(theirs)
    wanted = theirs
    if producer is not None:
        place = f" at {producer.origin.line}" if producer.origin.line else ""
        wanted = f"the result of {producer.kind} {producer.name}{place}"
    return [f"input {index} is {mine or 'left out'} where the original reads {wanted}"]
