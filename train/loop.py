"""The training loop: batch, step, log, save, evaluate. One loop for all recipes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grain
import jax
import numpy as np
import optax
import rich
import rich.console
from flax import linen as nn
from jax.sharding import Mesh

from data import documents
from data.tokenizer import Tokenizer, load_tokenizer
from models import lora, sharding
from models.language_model import LanguageModel
from train import checkpoints, metrics, optimizers, recipes, reference
from train import step as steps
from train.errors import ConfigError
from train.recipe import Recipe
from train.stopping import StopFlag

if TYPE_CHECKING:
    from configs.base import Experiment  # imports point the other way: configs <- train is not
else:
    Experiment = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """All parts of a run, made from its config; nothing is allocated on a device yet."""

    model: LanguageModel
    tokenizer: Tokenizer
    recipe: Recipe
    split: lora.Split
    """Which parameters are trained."""
    mesh: Mesh
    optimizer: optax.GradientTransformation
    abstract_state: steps.TrainState
    """Shapes, dtypes and shardings of the state."""
    metadata: checkpoints.Metadata

    @property
    def shardings(self) -> steps.TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    def jit_train_step(self) -> jax.stages.Wrapped:
        return steps.jit_train_step(
            self.recipe.loss_fn, self.optimizer, self.shardings, self.split.join
        )


def set_up(experiment: Experiment) -> Setup:
    """Checks the config as a whole and makes the parts of the run.

    Raises:
      ConfigError: parts of the config do not fit each other. DataError: unusable data.
    """
    model, tokenizer = LanguageModel(experiment.model), load_tokenizer(experiment.tokenizer)
    try:
        mesh = sharding.make_mesh(experiment.mesh)
        split = lora.split(model, experiment.lora)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check(experiment, tokenizer, mesh)
    recipe = recipes.RECIPES[experiment.recipe](experiment, model, tokenizer)
    if recipe.needs_reference:
        split = reference.with_frozen_copy(split)
        _check_begins_somewhere(experiment)
    optimizer = optimizers.make_optimizer(experiment.optimizers, experiment.train_steps)

    abstract_state = jax.eval_shape(
        lambda: steps.init_state(jax.random.key(experiment.seed), split.init, optimizer)
    )
    abstract_state = dataclasses.replace(abstract_state, frozen=nn.unbox(split.boxed_frozen))
    shardings = steps.state_shardings(abstract_state, split.boxed, mesh, split.boxed_frozen)
    return Setup(
        model=model,
        tokenizer=tokenizer,
        recipe=recipe,
        split=split,
        mesh=mesh,
        optimizer=optimizer,
        abstract_state=jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
            abstract_state,
            shardings,
        ),
        metadata=checkpoints.Metadata(
            model=experiment.model,
            tokenizer=experiment.tokenizer,
            tokenizer_fingerprint=tokenizer.fingerprint,
            data_hash=recipe.data_hash,
            longest_text_tokens=_longest_text(experiment),
            has_trained_value=_trains_value(experiment),
            lora=experiment.lora,
            template=recipe.template,
            reward_pool=recipe.reward_pool,
        ),
    )


def _longest_text(experiment: Experiment) -> int:
    """Tokens of the longest row of any part of a batch."""
    hybrid = experiment.hybrid
    lengths = [(experiment.sequence_length_tokens, hybrid.text_batch if hybrid else 1)]
    if hybrid:
        lengths.append((hybrid.prefix_tokens + hybrid.candidate_tokens, hybrid.policy_batch))
        lengths.append((hybrid.path_tokens, hybrid.value_batch))
    return max(length for length, rows in lengths if rows)


def _trains_value(experiment: Experiment) -> bool | None:
    """None where only the initial checkpoint can have learned values."""
    if experiment.hybrid and experiment.hybrid.value_batch:
        if experiment.optimizers.value.peak_learning_rate:
            return True
    return False if experiment.initial_checkpoint is None else None


def run(
    experiment: Experiment,
    folder: Path,
    /,
    *,
    resume: bool = False,
    stop: StopFlag | None = None,
    console: rich.console.Console | None = None,
) -> Path:
    """Trains in an opened run folder (see `train.run_folder.prepare`).

    A run that is stopped or killed at any step and resumed gives, bit for bit on a CPU, the
    parameters and the metrics of an uninterrupted one.

    Args:
      resume: continue from the newest checkpoint in the folder; with none there, start.

    Returns:
      The folder of the last checkpoint.

    Raises:
      ConfigError: the config does not fit itself or the checkpoint, or the loss is not finite.
      DataError: unusable data or checkpoint.
      Preempted: `stop` was requested; the state is saved.
    """
    stop, console = stop or StopFlag(), console or rich.get_console()
    setup = set_up(experiment)
    batches = setup.recipe.batches()
    saved_in, metadata = folder / "checkpoints", setup.metadata
    base: Any = None
    if setup.split.freeze is not None:
        # Read by every step, and in no checkpoint of this run.
        base = _initial_params(experiment, setup)
        assert experiment.initial_checkpoint is not None  # `set_up` has refused it
        metadata = checkpoints.with_base(metadata, saved_in, experiment.initial_checkpoint, base)
    with checkpoints.Checkpoints(
        saved_in, metadata, keep_checkpoints=experiment.keep_checkpoints
    ) as saved:
        start_step = saved.latest_step
        if start_step is not None and not resume:
            raise ConfigError(
                f"a new run needs a folder without checkpoints; {folder} has step {start_step}. "
                "Use --resume to continue it, or another --run-folder."
            )
        if start_step is None:
            state = _initial_state(experiment, setup, base)
        else:
            state = saved.restore(setup.abstract_state, batches)
            console.print(f"continuing at step {start_step}", highlight=False)
        if setup.split.freeze is not None:
            base = setup.split.freeze(base)
            state = dataclasses.replace(state, frozen=jax.device_put(base, setup.shardings.frozen))
            base = None  # else a second copy stays on a device
        with (
            metrics.MetricsFile(folder / "metrics.jsonl", resume_step=start_step) as log,
            metrics.Progress(
                start_step=start_step or 0, train_steps=experiment.train_steps, console=console
            ) as progress,
        ):
            _train(experiment, setup, state, batches, saved, log, progress, stop)
    return saved.path(experiment.train_steps)


def _train(
    experiment: Experiment,
    setup: Setup,
    state: steps.TrainState,
    batches: grain.DatasetIterator,
    saved: checkpoints.Checkpoints,
    log: metrics.MetricsFile,
    progress: metrics.Progress,
    stop: StopFlag,
) -> None:
    train_step = setup.jit_train_step()
    put = _put_on(setup.mesh)
    validate = _validation(experiment, setup)
    step = int(state.step)
    running: tuple[int, steps.Metrics] | None = None  # dispatched, its metrics not yet fetched

    def report() -> None:
        """Waits for the running step, logs it, and ends a run that has diverged."""
        nonlocal running
        if running is None:
            return
        (done, on_device), running = running, None
        values = {name: float(value) for name, value in jax.device_get(on_device).items()}
        _refuse_divergence(done, values, experiment, saved.latest_step)
        _refuse_silent_failure(done, values, setup.recipe)
        speed = progress.update(done, values["loss"], values["num_tokens"])
        if done % experiment.log_every_steps == 0 or done == experiment.train_steps:
            log.write(done, values, tokens_per_second=speed)

    def save() -> None:
        report()  # so that a state that is not finite is never saved
        saved.save(step, state, batches)

    while True:
        is_last = step == experiment.train_steps
        if is_last or (step and step % experiment.save_every_steps == 0):
            save()
        # After the save, so that an evaluation that was cut off is done again when resumed.
        if validate and (is_last or step % experiment.eval_every_steps == 0):
            report()
            losses = validate(state, stop)
            if losses is not None:
                log.write(step, losses)
                progress.say(_line(f"step {step}", losses))
        if stop.requested:
            save()
            stop.raise_preempted(f"step {step} of {experiment.train_steps}")
        if is_last:
            return
        state, step_metrics = train_step(state, put(next(batches)))
        step += 1
        report()  # of the step before: the device works on this one meanwhile
        running = (step, step_metrics)


def _initial_state(experiment: Experiment, setup: Setup, base: Any) -> steps.TrainState:
    """The state of step 0. base: parameters under adapters, which are not in it yet, or None."""
    init = jax.jit(
        lambda rng_key: steps.init_state(rng_key, setup.split.init, setup.optimizer),
        out_shardings=dataclasses.replace(setup.shardings, frozen=None),
    )
    state = init(jax.random.key(experiment.seed))
    if experiment.initial_checkpoint is None:
        return state
    params = _initial_params(experiment, setup) if base is None else base
    at = setup.shardings.params
    known = {name: jax.device_put(params[name], at[name]) for name in at if name in params}
    return dataclasses.replace(state, params=state.params | known)


def _initial_params(experiment: Experiment, setup: Setup) -> Any:
    """Of initial_checkpoint, which fits this run."""
    assert experiment.initial_checkpoint is not None
    config, tokenizer, params = checkpoints.load_params(experiment.initial_checkpoint)
    fingerprint = load_tokenizer(tokenizer).fingerprint
    if experiment.recipe == "reward" and not config.num_attributes:  # the head is new
        config = dataclasses.replace(config, num_attributes=experiment.model.num_attributes)
    if config != experiment.model or fingerprint != setup.tokenizer.fingerprint:
        raise ConfigError(
            "initial_checkpoint must have the model and tokenizer of this run; "
            f"{experiment.initial_checkpoint} has {config} and {tokenizer!r}, this run "
            f"{experiment.model} and {experiment.tokenizer!r}. Make them equal."
        )
    return params


def _put_on(mesh: Mesh) -> Callable[[steps.Batch], steps.Batch]:
    """Moves batches to the devices; the shardings are found once, from the first batch."""
    shardings = None

    def put(batch: steps.Batch) -> steps.Batch:
        nonlocal shardings
        if shardings is None:
            shardings = sharding.batch_shardings(batch, mesh)
        if jax.process_count() == 1:
            return jax.device_put(batch, shardings)
        return jax.tree.map(jax.make_array_from_process_local_data, shardings, batch)

    return put


def _validation(
    experiment: Experiment, setup: Setup
) -> Callable[[steps.TrainState, StopFlag], dict[str, float] | None] | None:
    """Means of the held-out metrics, over the same batches every time; None without any."""
    held_out: list[tuple[Any, steps.LossFn]] = []
    if experiment.validation_sources:
        corpus = documents.load(
            experiment.validation_sources,
            setup.tokenizer,
            sequence_length_tokens=experiment.sequence_length_tokens,
        )
        batches = recipes.text_batches(corpus, experiment.batch_size, seed=0)
        held_out.append((batches, recipes.next_token_loss(setup.model)))
    if setup.recipe.held_out is not None:
        held_out.append((setup.recipe.held_out, setup.recipe.loss_fn))
    if not held_out:
        return None

    def metrics_of(loss_fn: steps.LossFn) -> Callable:
        return jax.jit(
            lambda params, frozen, batch: loss_fn(
                setup.split.join(params, frozen), batch, jax.random.key(0)
            )[1]
        )

    parts = [(batches, metrics_of(loss_fn), _put_on(setup.mesh)) for batches, loss_fn in held_out]

    def validate(state: steps.TrainState, stop: StopFlag) -> dict[str, float] | None:
        means: dict[str, float] = {}
        for batches, measure, put in parts:
            measured = []
            for _, batch in zip(range(experiment.eval_batches), batches, strict=False):
                if stop.requested:
                    return None
                measured.append(measure(state.params, state.frozen, put(batch)))
            measured = jax.device_get(measured)
            for name in sorted(set(measured[0]) - {"num_tokens"}):
                mean = float(np.mean([values[name] for values in measured]))
                means[f"{metrics.VALIDATION_PREFIX}{name}"] = mean
        return means

    return validate


def _check_begins_somewhere(experiment: Experiment) -> None:
    if experiment.initial_checkpoint is None:
        raise ConfigError(
            "a preference loss compares with the model that the run began with; got none. Set "
            "--initial-checkpoint to the run folder or checkpoint of a fine-tuned model."
        )


def _check(experiment: Experiment, tokenizer: Tokenizer, mesh: Mesh) -> None:
    if experiment.lora is not None and experiment.initial_checkpoint is None:
        raise ConfigError(
            "adapters adapt a model that is trained; got lora without initial_checkpoint. "
            "Set --initial-checkpoint to the run folder or checkpoint of the base."
        )
    if tokenizer.vocab_size > experiment.model.vocab_size:
        raise ConfigError(
            "the model needs a logit for every token; got "
            f"model.vocab_size={experiment.model.vocab_size} for the {tokenizer.vocab_size} tokens "
            f"of tokenizer {experiment.tokenizer!r}. Raise model.vocab_size."
        )
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    sizes = {"batch_size": experiment.batch_size}
    if experiment.hybrid is not None:
        names = ("policy_batch", "value_batch", "text_batch")
        sizes |= {f"hybrid.{name}": getattr(experiment.hybrid, name) for name in names}
    for name, size in sizes.items():
        if size % parts:
            raise ConfigError(
                f"{name} must be a multiple of the devices that share a batch (mesh data x fsdp); "
                f"got {size} for {parts}. Change it or the mesh."
            )


def _refuse_divergence(
    step: int, values: dict[str, float], experiment: Experiment, latest_step: int | None
) -> None:
    bad = metrics.not_finite(values)
    if bad:
        rates = experiment.optimizers
        good = "none" if latest_step is None else f"step {latest_step}"
        raise ConfigError(
            f"training must stay finite; at step {step} {', '.join(bad)} became NaN or infinite "
            f"(last good checkpoint: {good}). Lower optimizers.policy.peak_learning_rate "
            f"(now {rates.policy.peak_learning_rate}) or optimizers.value.peak_learning_rate (now "
            f"{rates.value.peak_learning_rate}), raise their warmup_steps, or lower clip_norm."
        )


def _refuse_silent_failure(step: int, values: dict[str, float], recipe: Recipe) -> None:
    for name, floor in recipe.floors.items():
        if not values[name] > floor:
            raise ConfigError(
                f"{name} must stay above {floor}; at step {step} it is {values[name]}: the outputs "
                "of this batch are all alike. Lower the learning rate, or look at the data."
            )


def _line(start: str, values: dict[str, float]) -> str:
    return start + "".join(f"  {name} {value:.4f}" for name, value in values.items())
