"""Solutions for the tasks of `reasoning_gym` that come without one: the self-check needs an answer that is right."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any


def solution(task: str, metadata: dict[str, Any]) -> str | None:
    """A right answer from a problem's metadata; None for a task that this file does not know."""
    solve = {
        "boxnet": _boxnet,
        "graph_color": lambda m: json.dumps(m["possible_answer"]),
        "propositional_logic": lambda m: m["example_answer"],
        "rubiks_cube": _rubiks_cube,
        "rush_hour": _rush_hour,
    }.get(task)
    return None if solve is None else solve(metadata)


def _rubiks_cube(metadata: dict[str, Any]) -> str:
    """The scramble backwards."""
    moves = reversed(metadata["scramble_moves"].split())
    return " ".join(m[:-1] if m.endswith("'") else m + "'" for m in moves)


def _boxnet(metadata: dict[str, Any]) -> str:
    """One box after the other: down the rows, along the columns, onto its target."""
    squares = {tuple(map(float, k.split("_"))): list(v) for k, v in metadata["initial_state"].items()}
    plan = []
    for start, items in squares.items():
        for box in [i for i in items if i.startswith("box_")]:
            target = "target_" + box[4:]
            end = next(s for s, held in squares.items() if target in held)
            squares[end].remove(target)
            here = start
            while here != end:
                axis = 0 if here[0] != end[0] else 1
                step = 1.0 if end[axis] > here[axis] else -1.0
                there = (here[0] + step, here[1]) if axis == 0 else (here[0], here[1] + step)
                plan.append({f"Agent[{here[0]}, {here[1]}]": f"move({box}, square[{there[0]}, {there[1]}])"})
                here = there
            plan.append({f"Agent[{here[0]}, {here[1]}]": f"move({box}, {target})"})
    return json.dumps(plan)


_SIDE = 6
_EXIT = 16
"""Where the red car's left end stands when it is out: row 2, column 4."""


def _rush_hour(metadata: dict[str, Any]) -> str | None:
    """Breadth-first search over the positions of the cars, by single steps."""
    board = metadata["board_config"]
    labels = sorted(set(board) - {"o", "x"})
    cells = [[i for i, c in enumerate(board) if c == label] for label in labels]
    strides = [c[1] - c[0] for c in cells]
    sizes = [len(c) for c in cells]
    walls = {i for i, c in enumerate(board) if c == "x"}
    start = tuple(c[0] for c in cells)
    came: dict[tuple[int, ...], tuple[tuple[int, ...], str] | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        if state[0] == _EXIT:
            moves = []
            step = came[state]
            while step is not None:
                moves.append(step[1])
                step = came[step[0]]
            return " ".join(reversed(moves))
        taken = walls | {p + k * s for p, s, n in zip(state, strides, sizes, strict=True) for k in range(n)}
        for car, to, move in _moves(state, strides, sizes, taken):
            after = (*state[:car], to, *state[car + 1 :])
            if after not in came:
                came[after] = (state, move)
                queue.append(after)
    return None


def _moves(
    state: tuple[int, ...], strides: list[int], sizes: list[int], taken: set[int]
) -> Iterator[tuple[int, int, str]]:
    for car, (position, stride, size) in enumerate(zip(state, strides, sizes, strict=True)):
        place = position % _SIDE if stride == 1 else position // _SIDE
        letter = chr(ord("A") + car)
        if place > 0 and position - stride not in taken:
            yield car, position - stride, f"{letter}-1"
        if place + size < _SIDE and position + stride * size not in taken:
            yield car, position + stride, f"{letter}+1"
