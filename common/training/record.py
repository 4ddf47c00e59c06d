"""The record of a run: its history, logs and checkpoints, and what goes on from them.

    record = Record(Files(log_dir, model_dir), process, vars(args), data.facts)
    state = record.resume(args.resume, args.epochs)
    ...
    record.restore(model, optimizer, scaler)
    record.open(seed)
    for epoch in range(record.epoch, args.epochs):
        ...
        record.end_epoch(row)
    record.finish(tally, test)

All processes call all methods; process 0 writes.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import torch
from torch import nn

from common.evaluation import Tally
from common.training import changes, checkpoint, launch, logs, precision, report, restore
from common.training.claim import claim, launchers, refuse_a_run
from common.training.errors import NonFiniteLoss, UsageError, writing
from common.training.files import Files
from common.training.launch import Process
from common.training.selection import Selection


class Record:
    """What a run has done so far, in memory and on disk.

    Args:
        files: its folders and the names in them.
        process: only ``process.is_main`` writes.
        settings: the parsed flags, stored with the checkpoint and compared on resume. Of them
            ``overwrite``, ``other_data``, ``evaluate`` and ``start_epoch`` count here, too, if they
            are there.
        facts: what identifies the data. What ends in ``sha256`` has to be the same on resume.
        about: what was trained, as plain data, for the report and for whoever gets a checkpoint:
            "program", "method" and "data" in words, "network" (what builds it again, "arch" in any
            case), "transform" (of an image to evaluate: ``datasets.augment.described``), "scale"
            (what the loss multiplies the logits by: probabilities are softmax(scale * logits)),
            "classes" (names), "cls_num_list".
        selection: how the best epoch is chosen.
        dashes: see ``flags.spelled``.

    Attributes:
        log_dir, model_dir, latest, best: of ``files``.
        epoch: epochs that are finished, and so the 0-based number of the next one.
        history: one dictionary per finished epoch. best_row: the best of them, or None.
        best_score: what an epoch has to beat to be the best.
        outcome: after ``finish``: the tests of the last and of the best epoch.
        seed: of the run, None if it is not known yet.
        log: {name: TextLog}. writer: tensorboard writer (None in other processes).
    """

    def __init__(
        self,
        files: Files,
        process: Process,
        settings: Mapping[str, object],
        facts: Mapping[str, object] | None = None,
        *,
        about: Mapping[str, object] | None = None,
        selection: Selection | None = None,
        dashes: str = "--",
    ) -> None:
        self.log_dir, self.model_dir = files.log_dir, files.model_dir
        self.latest, self.best = files.latest, files.best
        self.process = process
        self.settings, self.facts = logs.plain(dict(settings)), dict(facts or {})
        self.about, self.selection = logs.plain(dict(about or {})), selection or Selection()
        self.epoch = self.settings.get("start_epoch", 0)
        self.history: list[dict] = []
        self.best_row: dict | None = None
        self.best_score = 0.0
        self.outcome: report.Outcome | None = None
        self.seed: int | None = None
        self.log: dict[str, logs.TextLog] = {}
        self.writer: logs.Events | None = None
        self._files, self._dashes = files, dashes
        self._locks: list[TextIO] = []
        self._only_weights = bool(self.settings.get("evaluate"))
        self._source: Path | None = None  # the checkpoint, and what is in it
        self._state: dict | None = None
        self._continues = False  # a run in these folders, whose logs have these lengths
        self._offsets: dict[str, int] = {}
        self._commits: list[str] = []  # of the code that the run was made with
        self._launchers: list[str] = []  # that have started it

    @property
    def resumed(self) -> bool:
        """Whether a checkpoint was read."""
        return self._state is not None

    def claim(self, flag: str) -> None:
        """Lock the folders for this run and refuse those that hold another: see ``claim.claim``."""
        self._locks = claim(self._files, self.settings, flag, self._dashes)

    def resume(self, flag: str, epochs: int, *, claimed: bool = False) -> dict | None:
        """Read the checkpoint that ``--resume`` names and take up its history; None without one.

        Files of the original programs, which know nothing of history and seed, are accepted. With
        ``--evaluate`` nothing is locked or created, and weights alone are enough. With
        ``--other_data`` the fingerprints of the data may have changed. A best epoch that another
        set chose is not the one to beat.

        Args:
            epochs: of the whole run.
            claimed: another record of this process has claimed the folders, and keeps them locked.

        Raises:
            UsageError: see ``claim``; the file is no checkpoint of the program, its data are
                others, or nothing is left to be done.
        """
        if not (self._only_weights or claimed):
            self.claim(flag)
        path = checkpoint.find(flag, self.latest)
        if path is None:
            if self._only_weights:
                raise UsageError(f"--evaluate --resume {flag}: there is no {self.latest} yet")
            return None
        state = checkpoint.load(path)
        restore.check_checkpoint(state, path, weights_alone=self._only_weights)
        run = state.get("run", {})
        self.epoch = operator.index(state.get("epoch", epochs))
        self._source, self._state = path, state
        self.seed = run.get("seed")
        self.history, self.best_row = run.get("history", []), run.get("best_row")
        for epoch, row in enumerate(self.history, start=self.epoch - len(self.history)):
            row["epoch"] = epoch  # some programs counted from 1 once
        self._commits = list(run.get("commits", ["unknown"] if run else []))
        self._launchers = list(run.get("launchers", []))
        score = self.selection.score
        if self.best_row and not isinstance(self.best_row.get(score), (int, float)):
            raise UsageError(
                f"{path}: the best epoch of its 'run' has no number as {score!r}, not a checkpoint "
                "of this program"
            )
        scores = [float(state[key]) for key in ("best_acc1", "best_bacc") if key in state]
        validated, finished = self.selection.validated, self.epoch >= epochs
        alike = changes.chosen_alike(run, self.facts, score)
        # What validation images chose in a finished run stands: all epochs would have to be
        # evaluated anew.
        stands = finished and validated
        before = run.get("facts", {})
        anew = not alike or (not stands and changes.changed_choice(before, self.facts, validated))
        if anew:
            self.best_row = None
        else:
            self.best_score = max([(self.best_row or {}).get(score, 0.0), *scores])
        after = f" (epoch {self.epoch})" if "epoch" in state else ""
        self.process.say(f"=> loaded checkpoint '{path}'{after}")
        auto = flag == "auto" and not self._only_weights
        another = ", or give this run another folder" if auto else ""
        if "classes" in self.about:
            for note in restore.check_classes(state, self.about["classes"], path, another):
                self.process.say(note)
        if self._only_weights:
            return state
        now = {"settings": self.settings, "facts": self.facts, "processes": self.process.world_size}
        for note in changes.compare(run, now, path, self._dashes, another):
            self.process.say(note)
        if self.epoch > epochs or (self.epoch == epochs and not (self.history and alike)):
            raise UsageError(
                f"{path}: {self.epoch} epochs are done and {epochs} asked for; evaluate it, or ask "
                "for more"
            )
        foreign = not run and self._files.are_of_this_program()  # an original's, among our files
        self._continues = self._files.has(path) and not foreign
        if self._continues:  # the logs of another run are not this one's
            self._offsets = run.get("offsets", {}) if run else self._files.log_sizes()
            if not (run or scores) and self.best.is_file():
                raise UsageError(
                    f"{path}: does not say what its best epoch reached, and {self.best} would be "
                    "written over; give this run another folder"
                )
        elif flag != "auto" and not self.settings.get("overwrite"):
            launch.in_main(lambda: refuse_a_run(self._files, self._dashes))
        if anew:
            self.process.say(
                f"note: {path}: its best epoch was chosen on another set; "
                + ("the last epoch is reported" if finished else "the best is looked for anew")
            )
        return state

    def settle(self, key: str, default: object) -> object:
        """A setting that the user may leave open, as None: that of the run that goes on, else
        ``default``. After ``resume``; checkpoints and report say it then.
        """
        if self.settings[key] is None:
            began = (self._state or {}).get("run", {}).get("settings", {})
            self.settings[key] = default if began.get(key) is None else began[key]
        return self.settings[key]

    def restore(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        *,
        optional: Mapping[str, str] | None = None,
    ) -> None:
        """Set model, optimiser and scaler to the checkpoint's state, if there is one to go on from.

        The checkpoints of this run will hold what they are then.

        Args:
            model: under the key ``state_dict``, or several modules under a key each.
            optional: {key: sentence} of what a file of the original lacks; the sentence is said.

        Raises:
            UsageError: something is missing, or belongs to another network or optimiser.
        """
        modules = model if isinstance(model, Mapping) else {"state_dict": model}
        self._modules = {key: launch.unwrap(module) for key, module in modules.items()}
        self._optimizer, self._scaler = optimizer, scaler
        if self._state is None:
            return
        state, source, optional = self._state, str(self._source), optional or {}
        if self._only_weights and modules.keys().isdisjoint(state):
            state = {next(iter(modules)): state}
        for key in [*modules] if self._only_weights else [*modules, "optimizer"]:
            if key not in state and key not in optional:
                cure = "; weights alone can only be evaluated" if key == "optimizer" else ""
                message = f"{source}: has no {key!r}, not a checkpoint of this program{cure}"
                raise UsageError(message)
            if key not in state and not self._only_weights:
                self.process.say(f"note: {source}: {optional[key]}")
        for key, module in self._modules.items():
            if key in state:
                restore.load_weights(module, state[key], source)
        if not self._only_weights:
            if "optimizer" in state:
                restore.load_optimizer(optimizer, state["optimizer"], source)
            if state.get("scaler"):  # that of a float32 run is empty
                restore.load_scaler(scaler, state["scaler"], source)
        for key in (*modules, "optimizer"):  # they need no more memory
            self._state.pop(key, None)

    def place(self, steps: int, figures: int) -> tuple[int, torch.Tensor | None]:
        """Steps that are done of the next epoch, and the sums of them; 0 and None at its start.

        Args:
            steps: of an epoch. figures: that the program sums up.

        Raises:
            UsageError: it had another number when the checkpoint was taken, or the sums are others.
        """
        state = self._state or {}
        done, sums = state.get("step", 0), state.get("sums")
        if done and (sums is None or sums.shape != (figures,)):
            found = "missing" if sums is None else f"of shape {tuple(sums.shape)}"
            raise UsageError(
                f"{self._source}: taken in the middle of an epoch, and its 'sums' is {found}, not "
                f"of shape ({figures},); take another copy, or an earlier checkpoint"
            )
        before = state.get("steps", steps)  # earlier versions did not note it
        if done >= steps or (done and before != steps):
            of = f" of {before}" if "steps" in state else ""
            raise UsageError(
                f"{self._source}: taken after {done}{of} steps of an epoch, which has {steps} "
                "here; go on with the images, batch size and number of machines that the run began "
                "with"
            )
        return (done, sums) if done else (0, None)

    def open(self, seed: int) -> None:
        """Open the logs: empty, or cut back to where the checkpoint was taken."""
        self.seed = seed
        writes = self.process.is_main
        if writes:
            self._note_code()
        self._launchers += [name for name in launchers() if name not in self._launchers]
        if self._continues:
            launch.in_main(self._set_best_back)
        elif writes:
            self._files.clear(keep=self._source)
        self.log = {
            name: logs.TextLog(self.log_dir / name if writes else None, self._offsets.get(name))
            for name in self._files.text_logs
        }
        if writes:
            self.writer = logs.Events(self._files.events, start_epoch=self.epoch)

    def _note_code(self) -> None:
        commit = report.commit()
        if self._commits[-1:] == [commit]:
            return
        if self._commits:
            self.process.say(f"note: the code was at {self._commits[-1]} and is at {commit}")
        self._commits.append(commit)

    def _set_best_back(self) -> None:
        """Where the run goes back before its best checkpoint, make that the source's, or remove it.

        The weights of an earlier best epoch are lost: it was written over.
        """
        with contextlib.suppress(UsageError):  # a damaged one is no matter before it is needed
            if not self.best.is_file() or checkpoint.load(self.best).get("epoch", 0) <= self.epoch:
                return
            best, stale = self.best_row, [self._files.copy, self.best]
            if best and best["epoch"] + 1 == self.epoch and not self._state.get("step"):
                self._keep_source_as_best()
                stale.pop()
            else:
                self.process.say(f"note: {self.best} is of a later epoch, and removed")
            for file in filter(None, stale):
                with writing(file):
                    file.unlink(missing_ok=True)

    def _keep_source_as_best(self) -> None:
        with checkpoint.atomic_file(self.best) as file:
            file.write(self._source.read_bytes())

    def evaluates(self, epoch: int, epochs: int, every: int) -> bool:
        """Whether ``epoch`` is evaluated: the first, from there each ``every``-th, and the last."""
        return epoch % every == 0 or epoch == epochs - 1 or self.best_row is None

    def is_best(self, row: Mapping[str, object]) -> bool:
        """Whether an epoch beats ``best_score``; the first does in any case."""
        if self.best_row is None and self.best_score == 0:
            return self.selection.score in row  # else it was not evaluated
        return self.selection.beats(row, self.best_score)

    def best_score_with(self, row: Mapping[str, object]) -> float:
        """``best_score`` once the epoch of ``row`` counts, too."""
        return max(row.get(self.selection.score, 0.0), self.best_score)

    def end_epoch(self, row: dict, *, numbered: bool = False, **entries: object) -> None:
        """Append a finished epoch to the history, rewrite metrics.csv, and write the checkpoint.

        Args:
            row: the epoch's figures, "epoch" counted from 0.
            numbered: keep a checkpoint under the epoch's number, too.
            entries: what else the checkpoint holds, as plain values and tensors.

        Raises:
            NonFiniteLoss: a loss, weight or moment is NaN or infinite; nothing is written then.
        """
        for key in ("train_loss", "loss"):
            if not math.isfinite(row.get(key, 0.0)):
                raise NonFiniteLoss(
                    f"{key} is {row[key]} in epoch {row['epoch']}; {precision.CURE}"
                )
        state = self._snapshot(row["epoch"] + 1, entries)
        self.epoch = row["epoch"] + 1
        paths = [self.latest]
        if numbered:
            paths.insert(0, self.model_dir / self._files.numbered.format(self.epoch))
        if self.is_best(row):
            self.best_score = row[self.selection.score]
            paths.insert(0, self.best)  # the latest is the last: a kill before repeats the epoch
        self.history.append(row)
        best = self.best_row
        if best is None or self.selection.beats(row, best[self.selection.score]):
            self.best_row = row
        for past in self.history[:-1]:
            if past is not self.best_row:  # 8142 numbers an epoch would swell the checkpoint
                past.pop("cls_acc", None)
        if self.process.is_main:
            report.write_metrics(self.log_dir, self.history)
        self._write(state, *paths)

    def save(self, **entries: object) -> None:
        """Write the checkpoint in the middle of an epoch; ``entries`` say where."""
        self._write(self._snapshot(self.epoch, entries), self.latest)

    def _snapshot(self, epoch: int, entries: Mapping[str, object]) -> dict:
        """What the checkpoint holds besides the record; raises ``NonFiniteLoss``."""
        state = {
            "epoch": epoch,
            **entries,
            **{key: module.state_dict() for key, module in self._modules.items()},
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        if (name := precision.first_non_finite(state)) is not None:
            raise NonFiniteLoss(f"{name} is not finite after {epoch} epochs; {precision.CURE}")
        return state

    def _write(self, state: Mapping[str, object], *paths: Path) -> None:
        if self.process.is_main:
            self.writer.flush()
            run = {
                "seed": self.seed,
                "history": self.history,
                "best_row": self.best_row,
                "offsets": {name: log.offset for name, log in self.log.items()},
                "settings": self.settings,
                "facts": logs.plain(self.facts),
                "processes": self.process.world_size,
                "commits": self._commits,
                "launchers": self._launchers,
            }
            checkpoint.save({**state, "about": self.about, "run": run}, *paths)
        launch.barrier()

    def finish(
        self,
        tally: Tally | None,
        test: Callable[[int], Tally],
        /,
        *,
        figures: Callable[[Tally], dict] | None = None,
        files: Sequence[str] | None = None,
        **facts: object,
    ) -> dict:
        """Evaluate on the test set what was not, write the report, close the logs.

        The model then has the weights of the reported epoch.

        Args:
            tally: the last epoch's evaluation; None: it was not done by this process.
            test: ``test(epoch)`` evaluates the model on the test set, with the loss of the epoch.
            figures: what the history says of a tally (default: ``Tally.result``).
            files: the test images, if they are files.
            facts: what else the report says.

        Returns: the last epoch's row, with its figures on the test set.
        """
        figures = figures or (lambda tally: tally.result(self.about["cls_num_list"]))
        self.outcome = self._tested(tally, test, figures)
        if self.process.is_main:
            report.write_report(
                self.log_dir,
                self.history,
                self.outcome,
                self.about,
                self.selection,
                files=files,
                settings=self.settings,
                device=self.process.device,
                commit=", ".join(map(str, dict.fromkeys(self._commits))),
                processes=self.process.world_size,
                seed=self.seed,
                **{**self.facts, **facts},
            )
        line = report.summary(self.outcome, self.selection, self.log_dir)
        self.process.say(line)
        if self.selection.validated:
            for log in [*self.log.values()][-1:]:  # the others are of training
                log.write(line + "\n")
        self.close()
        return self.outcome.final

    def _tested(
        self, tally: Tally | None, test: Callable[[int], Tally], figures: Callable[[Tally], dict]
    ) -> report.Outcome:
        """The last epoch on the test set, and the best one where another set chose it."""
        last, best = self.history[-1], self.best_row
        if tally is None or self.selection.validated:
            tally = test(last["epoch"])
        if not self.selection.validated:
            # Gone back to, and between two evaluations; or evaluated on other images.
            if self.selection.score not in last or best is None:
                last.update(figures(tally))
                if self.is_best(last):
                    best = self.best_row = last
                    launch.in_main(self._keep_source_as_best)
            return report.Outcome(last, best, tally)
        final = last | figures(tally)
        if best["epoch"] == last["epoch"]:
            return report.Outcome(final, final, tally, {"final": last, "best": best})
        state = self._state_of(best)
        if state is None:
            # An earlier run's that was gone on from, in another folder or another stage.
            self.process.say(
                f"note: the checkpoint of the best epoch, {best['epoch']}, is not there: the last "
                "epoch is reported"
            )
            return report.Outcome(final, final, tally, {"final": last, "best": last})
        for key, module in self._modules.items():
            restore.load_weights(module, state[key], str(self.best))
        tally = test(best["epoch"])
        chosen = best | figures(tally)
        return report.Outcome(final, chosen, tally, {"final": last, "best": best})

    def _state_of(self, best: Mapping[str, object]) -> dict | None:
        """The best checkpoint; None if there is none, or it is of another epoch than ``best``."""
        if not self.best.is_file():
            return None
        state, epoch = checkpoint.load(self.best), best["epoch"] + 1
        return state if state.get("epoch", epoch) == epoch else None  # once it was weights alone

    def close(self) -> None:
        """Close logs and event file, and unlock the folders."""
        for log in self.log.values():
            log.close()
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        for lock in self._locks:
            lock.close()
