"""What a run was asked to do, as rows for the top of its report: from its config and its manifest.

The manifest has what the config leaves to defaults: the options of strategies, filled in, and facts of the model. A row
whose fields a run does not have is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ponder.numbers import counted, duration, quantity
from ponder.runs.results import Results, Row, is_number
from ponder.show import visible

SHOWN_ALONE = ("temperature", "max_tokens", "thought_tokens", "answer_tokens")
"""Options of a strategy that have a row of their own."""
BUDGETS = (("tokens", "{:,} tokens"), ("seconds", "{:g} s"), ("dollars", "${:g}"))


def settings(results: Results) -> list[tuple[str, str]]:
    """Name and value of each setting; of a config of another command the fields as they are."""
    config = results.config
    kinds: tuple[tuple[str, Callable[[Results], Iterable[tuple[str, str]]]], ...] = (
        ("group_size", _rl),
        ("fit", _supervised),
        ("split", _evaluation),
    )
    try:
        rows = next((list(of(results)) for field, of in kinds if field in config), None)
    except (TypeError, ValueError, KeyError, AttributeError):
        rows = None  # edited by hand
    if rows is None:
        rows = [(key, str(value)) for key, value in config.items() if isinstance(value, str | int | float)]
    return [(name, visible(value, 400)) for name, value in rows if value]


def _evaluation(results: Results) -> list[tuple[str, str]]:
    config = results.config
    samples = config.get("samples", 1)
    each = f", {samples:,} samples each" if samples > 1 else ""
    return [
        ("model", _model(results)),
        ("engine", str(config.get("engine", ""))),
        *_strategy(results),
        ("budget of a search", _budget(config, "budget")),
        ("budget of all searches", _budget(config, "total")),
        ("environment", _environment(config)),
        ("scorer", _part(results, "scorer")),
        ("problems", f"n = {config.get('n', 0):,}, from the start of the {config['split']} split{each}"),
        ("seed", str(config.get("seed", ""))),
    ]


def _rl(results: Results) -> list[tuple[str, str]]:
    config = results.config
    problems, size, updates = (config.get(k, 0) for k in ("problems", "group_size", "updates"))
    return [
        ("model", _model(results)),
        ("trained weights", _weights(config)),
        *_strategy(results),
        ("environment", _environment(config)),
        ("advantage", _part(results, "advantage")),
        ("loss", _part(results, "loss")),
        ("learning rate", _rl_rate(config)),
        ("optimiser", _optimiser(config)),
        ("group size", f"{size:,} samples of a problem"),
        ("batch", f"{counted(problems, 'problem')} × {counted(size, 'sample')}, {counted(updates, 'update')}"),
        ("changed from the usual", _unusual(config)),
        ("length", _length(results, "sampled_tokens", "sampled tokens")),
        ("held-out evaluation", _held_out(results)),
        ("test-time budgets", _ladder(results)),
        ("seed", str(config.get("seed", ""))),
    ]


def _supervised(results: Results) -> list[tuple[str, str]]:
    config, fit = results.config, results.config["fit"]
    families = " ".join(str(f) for f in config.get("families", ()))
    return [
        ("model", _model(results)),
        ("trained weights", _weights(config)),
        ("data", str(config.get("data") or families)),
        ("loss", "next token, of the responses alone" if "epochs" in config or "longest" in config else "next token"),
        ("learning rate", _supervised_rate(fit)),
        ("optimiser", _optimiser(fit)),
        ("batch", f"at most {fit.get('batch_tokens', 0):,} tokens"),
        ("length", _length(results, "", "")),
        ("seed", str(config.get("seed", ""))),
    ]


def _model(results: Results) -> str:
    """`ponder-tiny (0.9 million parameters, float32, cpu)`."""
    facts = results.manifest.get("model")
    facts = facts if isinstance(facts, Mapping) else {}
    said = []
    if facts.get("parameters"):
        said.append(f"{facts['parameters'] / 1e6:,.1f} million parameters")
    said += [str(facts[key]) for key in ("dtype", "device") if facts.get(key)]
    name = results.config.get("model") or facts.get("name") or ""
    others = _options(results.config.get("others"))
    details = f" ({', '.join(said)})" if said else ""
    return f"{name}{details}{f', and {others}' if others else ''}"


def _weights(config: Row) -> str:
    if not config.get("lora_rank"):
        return "all"
    targets = " ".join(str(t) for t in config.get("lora_targets", ()))
    return f"a LoRA of rank {config['lora_rank']}, alpha {config.get('lora_alpha', 0):g}, on {targets}"


def _strategy(results: Results) -> list[tuple[str, str]]:
    """Name, options, and what is sampled at most, in rows of their own."""
    options = _filled(results, "strategy")
    rest = {k: v for k, v in options.items() if k not in SHOWN_ALONE and not (k == "n" and _is_rl(results))}
    thought, answer = options.get("thought_tokens"), options.get("answer_tokens")
    budget = f"{quantity(thought)} tokens" if is_number(thought) else ""
    if budget and is_number(answer):
        budget += f", and {quantity(answer)} for the answer"
    return [
        ("strategy", _named(results.config.get("strategy"), rest)),
        ("temperature", _or_default(options, results.config, "temperature")),
        ("thought budget", budget),
        ("max tokens of a response", "" if budget else _or_default(options, results.config, "max_tokens")),
    ]


def _is_rl(results: Results) -> bool:
    return "group_size" in results.config


def _filled(results: Results, kind: str) -> dict[str, Any]:
    """Options of a part, from the manifest with the defaults filled in, else as the config gives them."""
    noted = results.manifest.get(kind)
    options = noted.get("options") if isinstance(noted, Mapping) else None
    found = options or results.config.get(f"{kind}_options")
    return dict(found) if isinstance(found, Mapping) else {}


def _or_default(options: Row, config: Row, key: str) -> str:
    value = options.get(key, config.get(key))
    return quantity(value) if is_number(value) else "the strategy's default"


def _budget(config: Row, kind: str) -> str:
    limits = [text.format(config[key]) for unit, text in BUDGETS if is_number(config.get(key := f"{kind}_{unit}"))]
    return ", ".join(limits) or "no limit"


def _environment(config: Row) -> str:
    options = dict(config.get("environment_options") or {})
    if config.get("data"):
        options["data"] = config["data"]
    return _named(config.get("environment"), options)


def _part(results: Results, kind: str) -> str:
    return _named(results.config.get(kind), _filled(results, kind))


def _named(name: Any, options: Any) -> str:
    said = _options(options)
    return "" if not name else f"{name}: {said}" if said else str(name)


def _options(options: Any) -> str:
    """`n=8 by=auto`; what is empty is left out."""
    if not isinstance(options, Mapping):
        return ""
    return " ".join(f"{k}={v}" for k, v in options.items() if v not in (None, "", [], {}))


def _rl_rate(config: Row) -> str:
    rate, warm, share = (config.get(k) for k in ("learning_rate", "warmup_steps", "final_share"))
    if not (is_number(rate) and is_number(share)):
        return ""
    return f"{rate:g}: {warm} steps of warm-up, then {_fall(config, share)}"


def _fall(config: Row, share: float) -> str:
    """How the rate ends: known to the step where the run says so."""
    if share == 1:
        return "constant"
    begin, length = config.get("decay_from"), config.get("decay_steps")
    if is_number(begin) and is_number(length):
        return f"constant, from step {begin:,} on linear to {100 * share:.0f} % of it in {length:,} steps"
    return f"linear to {100 * share:.0f} % of it at the last step"


def _supervised_rate(fit: Row) -> str:
    rate, warm, decay = (fit.get(k) for k in ("learning_rate", "warmup_steps", "decay"))
    if not (is_number(rate) and is_number(decay)):
        return ""
    last = 100 * decay / (1 + decay)
    return f"{rate:g}: at most {warm} steps of warm-up, constant, linear to 0 over the last {last:.0f} %"


def _optimiser(config: Row) -> str:
    decay, beta2, norm = (config.get(k) for k in ("weight_decay", "beta2", "max_grad_norm"))
    if not (is_number(decay) and is_number(beta2) and is_number(norm)):
        return ""
    return f"AdamW, weight decay {decay:g}, β₂ {beta2:g}, gradient norm at most {f'{norm:g}' if norm else 'any'}"


def _unusual(config: Row) -> str:
    """Switches that change what is learned from."""
    said = [f"{key}={config[key]}" for key in ("mask_truncated", "importance_cap", "resample") if config.get(key)]
    said += ["rewards=shuffled"] if config.get("rewards") == "shuffled" else []
    return " ".join(said)


def _length(results: Results, key: str, what: str) -> str:
    """Steps done, tokens, and the time of the steps."""
    rows, config = results.metrics, results.config
    planned = config.get("steps")
    steps = f"{len(rows):,}{_of(planned, len(rows))} step{'s' * (len(rows) != 1)}"
    tokens = _sum(rows, key) if key else (rows[-1].get("tokens", 0) if rows else 0)
    said = [steps, f"{quantity(tokens)} {what or 'tokens'}", f"{duration(_sum(rows, 'seconds'))} of training"]
    limits = [f"{config[key]:g} {key}" for key in ("epochs", "minutes") if is_number(config.get(key))]
    return ", ".join(said) + (f" (of {' and '.join(limits)})" if limits else "")


def _of(planned: Any, done: int) -> str:
    return f" of {planned:,}" if is_number(planned) and planned > done else ""


def _held_out(results: Results) -> str:
    config = results.config
    count, every = config.get("eval_problems"), config.get("eval_every")
    if not count:
        return "none"
    when = "" if every is None else ", each step" if every == 1 else f", every {every:,} steps" if every else ""
    sampled, evaluated = (_filled(results, kind) for kind in ("strategy", "eval_strategy"))
    own = {k: v for k, v in evaluated.items() if k != "n" and sampled.get(k) != v}
    name = config.get("eval_strategy")
    how = f"; {_named(name or 'with', own)}" if name or own else ""
    return f"{counted(count, 'problem')}, before training{when}, at the end{how}"


def _ladder(results: Results) -> str:
    """The points of the test-time curves."""
    budgets = sorted({p["budget_tokens"] for part in results.sequential.values() for p in part if "budget_tokens" in p})
    samples = sorted({p["samples"] for part in results.parallel.values() for p in part})
    said = [f"thoughts of {_list(budgets)} tokens"] if budgets else []
    said += [f"{_list(samples)} samples"] if samples else []
    return "; ".join(said)


def _list(values: Iterable[float]) -> str:
    return ", ".join(quantity(v) for v in values)


def _sum(rows: Iterable[Row], key: str) -> float:
    return sum(row[key] for row in rows if is_number(row.get(key)))
