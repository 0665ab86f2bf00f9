"""The train loop, the same for pre-training and cleaning."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from datasets.errors import InputError
from datasets.seeding import hash64, rng
from trainers import checkpoint, distributed, schedule
from trainers.backward import backward
from trainers.batch import Feed, device_batches
from trainers.checkpoint import Keep, Progress
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.methods.epoch import BeginEpoch, EpochPlan, begin
from trainers.objectives.base import Objective
from trainers.record import Ledger, Sums, means
from trainers.schedule import Training

Measure = Callable[[Encoder, int], dict[str, float]]
"""(model, epochs done) -> metrics; called on every rank."""
Report = Callable[[dict[str, Any]], None]
"""Gets {"epoch", "step", "seconds", "metrics"}; called on rank 0 only."""


def fit(
    encoder: Encoder, objective: Objective, training: Training, feed: Feed, folder: Path, *, world: World | None = None,
    measure: Measure | None = None, report: Report | None = None, progress: Callable[[int, int, float], None] | None = None,
    ledger: Path | None = None, keep: Keep = "last", states: int = 1, resume: bool = True, begin_epoch: BeginEpoch | None = None,
    first_epoch: int = 0, phase: str = "", aside: bool = False,
    restore: Callable[[list[dict[str, Any]]], None] | None = None, note: Callable[[str], None] = lambda line: None,
) -> None:
    """Train `encoder` in place to the end of the feed, continuing from the newest checkpoint in `folder` if there is one.

    If this is one phase of a stage, `first_epoch` epochs come before it, `training.epochs` counts only its own, the feed has the steps from
    the start of the stage to the end of the phase, and schedule and optimiser start with the phase. If the newest checkpoint belongs to a
    later phase, the model is left as it is: that phase loads it. `begin_epoch`: see `methods.epoch.begin`. `aside`: mark its lines as
    those of a helper model.

    Before the first step and after each epoch all ranks call `measure`; then rank 0 saves and reports. After a resume a line may be
    reported again, equal except for times, so receivers must identify it by its epoch. `progress(step, steps, samples per second)` is
    called about once a second on rank 0. `ledger` gets one JSON line per step with the keys of all ranks. All ranks must use the same
    `folder`. Before each step torch's global generator is seeded, for dropout. On rank 0, `restore` is called before the first measurement
    with the lines reported up to the checkpoint that training continues from, or with []. `note` gets a line for the user for each damaged
    checkpoint that is skipped. `keep`, `states`: see `checkpoint.save`.

    Raises FloatingPointError with the step and the part of the objective that is not finite, and InputError if the ranks' memories of the
    objective differ.
    """
    world = world or World()
    per_epoch = feed.steps // (first_epoch + training.epochs)
    first = first_epoch * per_epoch
    training.check(feed.steps - first, world.size)
    encoder.place(world.device, precision=training.precision, channels_last=training.channels_last, compile=training.compile)
    if training.sync_batchnorm:
        distributed.synchronise_batchnorm(encoder, world)
    if encoder.model.logit_bias is not None:
        encoder.model.logit_bias.requires_grad_(objective.uses_logit_bias)
    optimizer = schedule.optimizer(encoder, training)
    if world.main and not resume:
        checkpoint.clear(folder)
    newest = distributed.from_main(checkpoint.tidy(folder, keep, states, note) if world.main else None, world)
    done = checkpoint.progress_of(newest) if newest else Progress()
    if restore is not None and world.main:
        restore(done.lines)
    if done.step > feed.steps:
        return
    running = objective.begin(encoder, rng(training.seed, "objective", first_epoch))
    memory = running.to(world.device) if isinstance(running, nn.Module) else None
    if newest and done.step > first:
        checkpoint.load(newest, encoder, optimizer, memory)
    model = distributed.wrap(encoder, world, broadcast_buffers=not training.sync_batchnorm)
    say = report if report is not None and world.main else lambda line: None
    keys = Ledger(ledger if world.main else None, done.step)
    began = time.monotonic() - done.seconds

    def measured() -> dict[str, float]:
        distributed.share_buffers(encoder, world)
        values = measure(encoder, done.epoch) if measure else {}
        encoder.train()
        return values

    decided = EpochPlan()  # the plan of the current epoch
    frozen: list[nn.Parameter] = []
    encoder.train()
    if done.step == 0:
        done.before = [{"epoch": 0, "step": 0, "seconds": 0.0, "metrics": measured()}]
        say(done.before[0])
    elif done.line is not None:
        say(done.line)

    def batches() -> Iterator[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
        """All remaining batches, with the values that `begin_epoch` gave for their epoch."""
        nonlocal decided, frozen
        if begin_epoch is None:
            yield from device_batches(feed, encoder, objective.two_views, done.step)
            return
        while done.step < feed.steps:  # the loop below advances done.step
            epoch, within = divmod(done.step, per_epoch)
            decided = begin(begin_epoch, encoder, epoch, within > 0, folder, world)
            for parameter in decided.anew:
                optimizer.state.pop(parameter, None)
            frozen = [parameter for name, parameter in encoder.model.named_parameters() if name in decided.frozen]
            for raw, batch in device_batches(feed, encoder, objective.two_views, done.step, (epoch + 1) * per_epoch, decided.order):
                yield raw, batch | values_of(decided, raw["number"], encoder.device)

    sums = Sums(done.sums if world.main else dict.fromkeys(done.sums, 0.0), every=1 if world.device.type == "cpu" else 16)
    epoch_began = reported_at = time.monotonic()
    first_step = reported_step = done.step
    for raw, batch in batches():
        assert raw["step"] == done.step, "the feed must deliver every step once, in order"
        lr = schedule.learning_rate(done.step - first, feed.steps - first, training)
        for group in optimizer.param_groups:
            group["lr"] = lr
        seed = hash64(training.seed, "step", done.step, world.rank)
        losses = backward(model, running, batch, training.accumulate, seed)
        for parameter in frozen:
            parameter.grad = None
        optimizer.step()
        optimizer.zero_grad()
        encoder.clamp_logit_scale()
        sums.add(done.step, {**losses, "lr": lr, "logit_scale": encoder.model.logit_scale.detach().exp()})
        if ledger is not None:
            keys.write(done.step, distributed.gather_lists([str(key) for key in raw["key"]], world))
        done.step += 1

        now = time.monotonic()
        if progress and world.main and (now - reported_at >= 1 or done.step == feed.steps):
            progress(done.step, feed.steps, (done.step - reported_step) * training.batch_size / max(now - reported_at, 1e-9))
            reported_at, reported_step = now, done.step
        whole_epoch = done.step % per_epoch == 0
        every = training.checkpoint_every_steps
        if not whole_epoch and not (every and done.step % every == 0):
            continue

        totals = distributed.sum_over_ranks(sums.take(), world)
        done.before, done.sums, done.line = done.lines, totals, None
        if whole_epoch:
            done.epoch, done.sums = done.epoch + 1, {}
            metrics = {f"train/{name}": mean for name, mean in means(totals, per_epoch * world.size).items()}
            rate = (done.step - first_step) * training.batch_size / max(time.monotonic() - epoch_began, 1e-9)
            metrics |= {"train/samples_per_second": rate, **decided.metrics, **measured()}
            line = {"epoch": done.epoch, "step": done.step, "seconds": time.monotonic() - began, "metrics": metrics}
            done.line = line = {**line, **({"phase": phase} if phase else {}), **({"aside": True} if aside else {})}
        done.seconds = time.monotonic() - began
        if memory is not None:
            check_equal(memory, objective, world)
        if world.main:
            keys.flush()
            checkpoint.save(folder, encoder, optimizer, done, keep, states, memory)
        if whole_epoch:
            say(line)
            epoch_began, first_step = time.monotonic(), done.step
        else:
            sums.put_back(totals if world.main else dict.fromkeys(totals, 0.0))


def values_of(epoch: EpochPlan, numbers: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
    """The epoch's values for the pairs with these numbers: int64 or float32 [B]."""
    picked = {name: torch.from_numpy(value[numbers]) for name, value in epoch.values.items()}
    return {name: (value.float() if value.is_floating_point() else value.long()).to(device) for name, value in picked.items()}


def check_equal(memory: nn.Module, objective: Objective, world: World) -> None:
    """Raise InputError if the objective's memory differs between ranks."""
    held = {name: buffer.detach().cpu().reshape(-1).view(torch.uint8) for name, buffer in memory.named_buffers()}
    sums = {name: hashlib.sha256(values.numpy().tobytes()).hexdigest() for name, values in held.items()}
    ranks = distributed.gather_lists([sums], world)
    if any(other != sums for other in ranks):
        raise InputError(f"the memory of the objective {objective.label} is not the same on all ranks: gather what goes into it.")
