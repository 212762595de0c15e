"""Everything that a run can be told: Run = Model + Data + Recipe + seed (+ Transfer).

A field here is a key of a study, a `--set` key and part of the run id (see `study.identity` for the few that are not).
The docstring under a field is its documentation: unit, range, meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

MaskedTarget = Literal["mean-colour", "4x4", "pixels"]

PROBE_SHOTS = 10
"""Labelled images a class of `Recipe.probe`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str = "ViT-Ti/16"
    """The literature's name, e.g. `ViT-L/16`, `R50+ViT-B/16`, `R152x2`, or one built from the study's own [sizes]."""
    stem: Literal["standard", "small"] = "standard"
    """Of ResNets and hybrids: 7x7 stride 2 and max-pool, or 3x3 stride 1 without pooling for images under 64 px."""
    pre_logits: bool = True
    """A dense layer of the model's width with tanh before the head, in pre-training (ViTs and hybrids)."""
    patch: int | None = None
    """Instead of the number after the slash in the name: pixels along one side of a token."""
    width: int | None = None
    """Instead of the size's: width of the transformer (ViTs and hybrids)."""
    depth: int | None = None
    """Instead of the size's: blocks of the transformer."""
    mlp: int | None = None
    """Instead of the size's: width of the hidden layer of its MLPs."""
    heads: int | None = None
    """Instead of the size's: heads of its attention."""
    gelu: Literal["exact", "tanh"] | None = None
    """Of ViTs and hybrids; exact where nothing is said."""
    pool: Literal["token", "gap"] | None = None
    """Of ViTs and hybrids: what the head reads, the class token (where nothing is said) or the tokens' average."""
    pos_embedding: Literal["1d", "2d", "none", "relative"] | None = None
    """Of ViTs and hybrids: learned, one for each place (1d, where nothing is said), one for each row and column (2d),
    or one for each distance in every block (relative)."""
    attention: Literal["full", "axial"] | None = None
    """Of ViTs and hybrids: over all tokens (where nothing is said), or along rows, then columns, with an MLP each."""
    weight_standardization: Literal["jax", "timm", "bit"] | None = None
    """Of hybrids (jax where nothing is said) and ResNets (bit): see `vitscale.models.standardize`."""
    group_norm_eps: float | None = None
    """Of hybrids (1e-6 where nothing is said) and ResNets (1e-5)."""
    checkpoint: str = ""
    """A published checkpoint instead of a pre-training: an .npz of the JAX code, a state dict of timm's, or what
    `vitscale checkpoint export` wrote. `data.resolution` is the one that it was trained at. Its content, not its path,
    is part of the run id; data and recipe are not."""
    head_bias: float | None = None
    """Where the head's bias starts in pre-training; 0 where nothing is said, -10 with the sigmoid loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    shards: str = ""
    """WebDataset shards: a folder, a pattern such as `train-{0000..1023}.tar`, a list, or a URL of these; see
    docs/data.md. Not part of the run id: the fingerprint of its sample index is."""
    test: str = ""
    """Shards with the upstream test set; empty: none."""
    size: int | None = None
    """Images in a data set that is not at hand, to plan without it (run ids are then provisional)."""
    num_classes: int | None = None
    """Classes of a data set that is not at hand."""
    resolution: int = 224
    """Side of the square image that the network sees, in pixels."""
    examples: int | None = None
    """Unique training images: a nested, class-stratified subset. None: all but the validation images."""
    fraction: float | None = None
    """Instead of `examples`: a share of the training images, 0 to 1. With `classes`, of all of them: those of the
    chosen classes among that share are trained on."""
    classes: int | None = None
    """Train on this many classes, a nested choice; they are numbered anew, and upstream accuracy is over them. None:
    all."""
    subset_seed: int | None = None
    """Which images and classes the subset holds; None: it follows `seed`, so that the spread over seeds contains that
    choice."""
    exclude: str = ""
    """A list that `vitscale data dedup` wrote: images that are neither trained nor validated on. Its content, not its
    path, is part of the run id."""
    max_bad: float = 0.001
    """Largest share of the images that may turn out unreadable or without a label, 0 to 1. They keep their places with
    weight 0; above it the run stops. Not part of the run id."""
    val_examples: int = 0
    """Training images held out as the upstream validation set, stratified, the same for every seed."""
    shuffle_block: int = 256
    """Consecutive samples that are moved together by an epoch's shuffle."""
    crop: Literal["none", "inception"] = "inception"
    """`inception`: a random box of `crop_area` to 1 of the area, ratio 3/4 to 4/3, resized to the resolution."""
    crop_area: float = 0.05
    """Smallest share of the area that a random crop keeps, 0 to 1."""
    flip: bool = True
    """Mirror half of the training images left to right."""
    randaugment_layers: int = 0
    """Operations of RandAugment on each training image, after crop and flip; 0: none."""
    randaugment_magnitude: int = 10
    """Their strength, 0 to 30; see `vitscale.data.randaugment`."""
    eval_crop: Literal["none", "center"] = "none"
    """In evaluation: the whole image resized to a square (vit_jax), or the short side resized to the resolution /
    `eval_crop_ratio` and the square in the centre cropped (big_vision, timm)."""
    eval_crop_ratio: float = 0.875
    """Share of the short side that the crop in the centre keeps, 0 to 1."""
    decode: Literal["full", "scaled"] = "full"
    """Every pixel of a JPEG; or, faster and other pixels, at 1/2, 1/4 or 1/8 where what is looked at stays as large as
    the resolution, and with the plainer interpolation of colours."""
    resize: Literal["pillow", "torch", "bilinear"] = "pillow"
    """Bilinear and antialiased by Pillow, or, 4 times as fast, by torch; or without antialiasing, as in vit_jax."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    batch_size: int = 4096
    """Images in one optimizer step, over all devices."""
    steps: int | None = None
    """Duration in optimizer steps. Exactly one of steps, epochs and examples."""
    epochs: float | None = None
    """Duration in passes over the training subset."""
    examples: int | None = None
    """Duration in images seen, repetitions counted."""
    lr: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "rsqrt", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_steps: int = 10_000
    """Steps of linear warm-up from 0."""
    cooldown: float = 0.0
    """Last share of the duration, 0 to 1, over which the rate falls to `end_lr`."""
    cooldown_shape: Literal["linear", "sqrt"] = "linear"
    """Of the rate's fall in the cool-down: linear, or fast at first, as 1 - sqrt(share done)."""
    end_lr: float = 0.0
    """Learning rate at the end of a linear or cosine schedule, or of a cool-down; without either it means nothing."""
    weight_decay: float = 0.1
    """Decoupled (AdamW), scaled by the learning rate, on matrices and kernels only."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.999
    """Decay of AdamW's second moment."""
    ema: float = 0.0
    """Decay of a moving average of the weights at each step (Polyak averaging; 0.9999 in the paper), which is then
    what is validated and transferred. 0: none, the weights themselves."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0: not clipped."""
    dropout: float = 0.0
    """Rate after every dense layer but qkv, and after the position embedding."""
    stochastic_depth: float = 0.0
    """Rate at which the last block's branches are left out for an image, 0 to 1; that of the others grows linearly with
    their depth, from 0 (arXiv 1603.09382)."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""
    mixup: float = 0.0
    """Each image is blended with the next one of the global batch, and so are their losses; the share is drawn for each
    step from Beta(mixup, mixup). 0: not blended."""
    objective: Literal["classification", "masked-patch"] = "classification"
    """Labels, or, of ViTs, what is missing: predictions of corrupted patches (arXiv 2010.11929, B.1.2)."""
    masked_target: MaskedTarget = "mean-colour"
    """Of masked-patch: what is predicted of each corrupted patch: its mean colour in 3 bits a channel, that of each of
    its 4x4 squares, or all its pixels, by L2."""
    masked_fraction: float = 0.5
    """Of masked-patch: share of the patch embeddings that are corrupted, to the nearest whole number of them. 80 % of
    these are replaced by a learned one, 10 % by that of another patch of the image, 10 % are kept."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross-entropy; `sigmoid` starts with a head bias of -10."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of matrix products. A device that cannot do it refuses."""
    keep: Literal["last", "best"] = "last"
    """Which checkpoint is transferred: the last one, or the best by upstream validation."""
    validate_every: int | None = None
    """Images seen between two upstream validations; None: only at the end."""
    probe: tuple[str, ...] = ()
    """Downstream tasks, named as in `Transfer.task`, whose 10-shot accuracy is logged at each upstream validation, or,
    without `data.val_examples`, when one would be due: closed-form, the mean over the task's draws, of the averaged
    weights where there are such. It chooses nothing and moves no weight. Not part of the run id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    task: str = ""
    """A file of `vitscale/data/tasks`, by name, or the path of one's own task file."""
    protocol: Literal["fewshot", "finetune"] = "fewshot"
    """Closed-form ridge regression on frozen features, or fine-tuning of all weights."""
    init: Literal["pretrained", "untrained", "pixels"] = "pretrained"
    """Where features or weights come from; the others are baselines: an untrained network, raw pixels."""
    resolution: int | None = None
    """Side of the image in pixels; None: the resolution of pre-training."""
    shots: tuple[int, ...] = (1, 5, 10)
    """Few-shot: labelled images a class."""
    lr: tuple[float, ...] = (0.003, 0.01, 0.03)
    """Fine-tuning: learning rates; several are compared on the task's dev split, the best is trained again on all."""
    steps: int = 500
    """Fine-tuning: optimizer steps."""
    batch_size: int = 512
    """Fine-tuning: images in one step."""
    warmup_steps: int = 0
    """Fine-tuning: steps of linear warm-up before the cosine decay to 0."""
    seeds: int = 1
    """Fine-tuning: repetitions of the final training; each is a row."""
    ema: float = 0.0
    """Fine-tuning: decay of a moving average of the weights, which is then what is tested; as `Recipe.ema`."""
    pos_resize: Literal["bilinear", "bicubic"] = "bilinear"
    """How position embeddings are carried to another resolution: as in the paper's code, or bicubic, antialiased."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A downstream task as its file describes it."""

    name: str
    version: int
    """Raised when data, splits or settings change: results of two versions are never mixed."""
    source: Literal["digits", "shards"]
    """scikit-learn's digits, or folders of shards."""
    num_classes: int
    train: str = ""
    """With source = "shards": as `Data.shards`."""
    test: str = ""
    """With source = "shards": as `Data.shards`."""
    train_examples: int = 0
    """Images in the training split (dev included)."""
    test_examples: int = 0
    """Images in the test split."""
    smallest_class: int = 0
    """Training images of the class that has fewest: no few-shot draw can ask for more. 0: not said."""
    dev_fraction: float = 0.1
    """Share of the training split on which a learning rate is chosen; 0.01 to 0.1 in the paper."""
    metric: Literal["accuracy"] = "accuracy"
    ridge: float = 1024.0
    """Few-shot: lambda of the ridge regression."""
    draws: int = 20
    """Few-shot: draws of the support set, the same for every model."""
    crop: Literal["none", "inception"] = "inception"
    """Fine-tuning: as `Data.crop`."""
    crop_area: float = 0.05
    """Fine-tuning: as `Data.crop_area`."""
    flip: bool = True
    """Fine-tuning: as `Data.flip`; off where mirroring changes the class."""
    eval_crop: Literal["none", "center"] = "none"
    """As `Data.eval_crop`. A task says itself how its images are seen, whatever a model was pre-trained with."""
    eval_crop_ratio: float = 0.875
    """As `Data.eval_crop_ratio`."""
    decode: Literal["full", "scaled"] = "full"
    """As `Data.decode`."""
    resize: Literal["pillow", "torch", "bilinear"] = "pillow"
    """As `Data.resize`."""
    licence: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One pre-training run, or one transfer of it (`transfer` is set)."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    transfer: Transfer | None = None
