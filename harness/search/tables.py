"""The full table of a study's trials, as CSV and Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from petlbench.harness.json_files import write_atomically
from petlbench.harness.search.study import SearchedTrial, Study

_CHANGED = (
    "A trial that took over from another shows the settings it ended with, and is never the best one: no single",
    "configuration would give its score again.",
)


def trial_frame(study: Study) -> pd.DataFrame:
    """One row per trial, in the order of their numbers; recalls in percent."""
    keys = list(study.about.question.space)
    rows: list[dict[str, Any]] = []
    for trial in study.trials:
        rows.append(
            {
                "trial": trial.number,
                "status": trial.status,
                **{key: trial.config.get(key) for key in keys},
                "val_mR": trial.best_mR,
                "epoch": study.chosen_epoch(trial),
                "epochs": f"{trial.last_epoch}/{trial.epochs}",
                "samples_seen": trial.samples_seen,
                "seconds": round(trial.seconds, 2),
                "origin": trial.origin,
                "note": _note(trial),
            }
        )
    return pd.DataFrame(rows)


def _note(trial: SearchedTrial) -> str:
    taken = [f"took over from #{takeover.of} after epoch {takeover.epoch}" for takeover in trial.taken]
    error = f"{trial.error.type}: {trial.error.message}" if trial.error else ""
    return "; ".join(text for text in (*taken, trial.note, error) if text)


def write_tables(study: Study) -> list[Path]:
    """Write ``trials.csv`` and ``trials.md`` into the study's folder."""
    frame = trial_frame(study)
    csv, markdown = study.folder / "trials.csv", study.folder / "trials.md"
    write_atomically(csv, frame.to_csv(index=False, lineterminator="\n").encode())
    write_atomically(markdown, _markdown(study, frame).encode())
    return [csv, markdown]


def _markdown(study: Study, frame: pd.DataFrame) -> str:
    question, best = study.about.question, study.best()
    shown = frame.sort_values(["val_mR", "trial"], ascending=[False, True], na_position="last").copy()
    shown["val_mR"] = [f"{value:.2f}" if pd.notna(value) else "–" for value in shown["val_mR"]]
    shown["epoch"] = [str(int(value)) if pd.notna(value) else "–" for value in shown["epoch"]]
    for key in question.space:
        shown[key] = [
            f"{v:.4g}" if isinstance(v, float) else "–" if v is None else str(v) for v in frame[key][shown.index]
        ]
    shown["note"] = [_cell(note) for note in shown["note"]]
    shown["trial"] = [f"**{n}**" if best is not None and n == best.number else str(n) for n in shown["trial"]]
    lines = [
        f"# Search: {question.label}",
        "",
        f"Study `{study.about.study_id[:8]}`: {question.searcher} under {question.scheduler}, seed {question.base.seed}, preset "
        f"`{study.about.preset}`. {len(study.trials)} configurations, "
        f"{sum(t.samples_seen for t in study.trials):,} image-caption pairs seen, {study.state.spent_s:,.0f} s of the clock.",
        "",
        "`val_mR` is the best validation mR (percent) of the epochs that a trial was given; a pruned trial got fewer. The test",
        "split was not opened. Best first.",
        *(_CHANGED * any(trial.taken for trial in study.trials)),
        "",
        shown.to_markdown(index=False, disable_numparse=True),
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    line = next((part for part in text.splitlines() if part.strip()), "")
    return (line if len(line) <= 100 else line[:99] + "…").replace("|", "\\|")
