"""`prefchat losses`: what the flags of the preference loss mean."""

from collections.abc import Sequence

from prefchat_jax.cli.console import output, table
from prefchat_jax.errors import UserError
from prefchat_jax.training.catalogue import (
    CROSS_ENTROPY,
    GROUPS,
    NOISE,
    OBJECTIVES,
    USERS,
)


def main(argv: Sequence[str]) -> None:
    """Prints the tables of names."""
    if argv and argv[0] not in ("-h", "--help"):
        raise UserError(f"`prefchat losses` takes no {argv[0]!r}.")
    console = output()
    rows = [
        [name, row.equation, row.paper, _shown(row.beta), _shown(row.margin)]
        + ["yes" if row.reference else ""]
        for name, row in (*OBJECTIVES.items(), ("module:function", USERS))
    ]
    columns = ["--pref_objective", "loss of one negative", "paper", "beta", "margin"]
    columns += ["reference"]
    title = "Objectives: d = lead of the gold logit, less that of the reference policy"
    console.print(table(title, columns, rows, text_columns=3))
    rows = [[name, row.equation, row.paper] for name, row in GROUPS.items()]
    columns = ["--pref_group_estimator", "loss over K margins m", "paper"]
    console.print(
        table("Groups: l = loss of one margin", columns, rows, text_columns=3)
    )
    rows = [[name, row.equation, row.paper] for name, row in NOISE.items()]
    columns = ["--pref_noise", "loss of one example", "paper"]
    title = "Noise: L = loss over the group, S = the same with every margin turned"
    console.print(table(title, columns, rows, text_columns=3))
    rows = [[f"--{name}", *row[:2]] for name, row in CROSS_ENTROPY.items()]
    columns = ["flag", "loss of one example", "paper"]
    title = "Cross-entropy, which the preference loss is added to: p = softmax(z)"
    console.print(table(title, columns, rows, text_columns=3))


def _shown(default: float | None) -> str:
    return "" if default is None else f"{default:g}"
