"""Fields that every config has, and the blocks that many share."""

import ml_collections
from ml_collections import config_dict

# A field without a value takes its method's setting; the placeholder fixes its type.
from_method = config_dict.placeholder


def base(task: str) -> ml_collections.ConfigDict:
    """What `experiments.train` needs of any config."""
    config = ml_collections.ConfigDict()
    config.task = task
    config.seed = 0
    config.batch_size = 256
    config.steps = 1000
    config.log_every = 100
    config.evaluate_every = 1000  # 0: never
    # every 0: only at the end. The newest `keep` stay, and the one with the least (or "max") value of the metric `best`.
    config.checkpoint = {"every": 1000, "keep": 3, "best": "", "best_mode": "min"}
    # Devices along each axis, -1: all that are left. The batch is split over data and fsdp, the state over fsdp, and dense
    # and attention layers over model.
    config.mesh = {"data": -1, "fsdp": 1, "model": 1}
    config.parallel = "jit"  # or "pmap", which splits the batch alone
    config.init_from = ""  # folder of a run whose averaged parameters this one starts from
    config.cache_dir = "runs/cache"  # runs that others need: feature networks, teachers, autoencoders
    config.ema_decay = 0.999
    config.accumulate = 1  # parts of a batch that go through the network in turn, where memory is short
    config.optimizer = optimizer()
    return config


def optimizer(name: str = "adam", learning_rate: float = 1e-3) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": name,
            "learning_rate": learning_rate,
            "schedule": "constant",  # or "cosine", to 0 at the last step
            "warmup_steps": 0,
            "clip": 0.0,  # largest global gradient norm; 0: none
        }
    )


def evaluation(features: ml_collections.ConfigDict | None, samples: int) -> ml_collections.ConfigDict:
    """How generated examples are judged."""
    return ml_collections.ConfigDict(
        {
            "samples": samples,
            "block": 256,  # samples drawn at once
            "pictured": 64,
            "split": "train",  # what generated examples are compared with
            "reference": 0,  # at most so many real examples; 0: all
            "features": features if features is not None else {},  # config of the network that judges
        }
    )


def images(name: str, **fields: object) -> ml_collections.ConfigDict:
    """A tensorflow-datasets image set."""
    return ml_collections.ConfigDict(
        {
            "name": name,
            "data_dir": "",  # empty: the folder in MLFUNCS_DATA, else ~/tensorflow_datasets
            "train_split": "train",
            "test_split": "",  # empty: test, else validation, else that of training
            "flip": False,  # mirror at random while training
            "image_size": 0,  # 0: as stored
            "resident_bytes": 2**31,  # larger sets stay on disk and are streamed
            **fields,
        }
    )


def scenes(**fields: object) -> ml_collections.ConfigDict:
    """Captioned shapes, drawn when a run starts; examples have "tokens" beside "image" and "label"."""
    return ml_collections.ConfigDict(
        {
            "name": "scenes",
            "seed": 0,  # of the scenes and of what is held out
            "image_size": 16,
            "objects": 1,
            "fewest": 1,  # scenes have this many objects up to `objects`
            "grid": 2,  # objects lie in different cells of a grid of this side
            "train_size": 8192,
            "test_size": 1024,
            "held_out": 0,  # so many pairs of shape and colour are in the test set alone; 0: both sets show all
            "mention": ("size", "style", "color", "shape", "place", "background"),  # what captions say
            "unsaid": 0.0,  # chance of each of these to be left out of a caption, each by itself
            "jitter": 1.0,  # how far from the middle of its cell an object may lie: 0 not at all, 1 as far as it fits
            "only": {},  # the words of an attribute that there are, {"style": ("plain",), "background": ("grey",)}; else all
            **fields,
        }
    )


def consistency(method: str, teacher: ml_collections.ConfigDict | None) -> ml_collections.ConfigDict:
    """A consistency config: what is left without a value is the method's published setting."""
    config = base("consistency")
    config.method = method  # training, improved, latent_improved, distillation, easy_tuning
    config.consistency = {
        "loss": from_method(str),
        "pairs": from_method(str),
        "discretization": from_method(str),
        "initial_steps": from_method(int),
        "final_steps": from_method(int),
        "proposal": from_method(str),
        "proposal_mean": from_method(float),
        "proposal_std": from_method(float),
        "distance": from_method(str),
        "robust_scale": from_method(str),
        "weight": from_method(str),
        "teacher": from_method(str),
        "initial_decay": from_method(float),
        "solver": from_method(str),
        "coupling": from_method(str),
        "coupling_group": 0,  # 0: the whole batch
        "diffusion_fraction": from_method(float),
        "diffusion_weight": from_method(float),
        "initialize_from_teacher": from_method(bool),
        "sigma_min": from_method(float),
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "stages": 8,  # of easy tuning
    }
    config.teacher = teacher if teacher is not None else {}
    config.methods = {}  # this config's settings of single methods: {method: {section: {field: value}}}
    return config


def text(**fields: object) -> ml_collections.ConfigDict:
    """A text file as rows of characters, the last part of it the test set."""
    return ml_collections.ConfigDict(
        {
            "name": "text",
            "file": "tinyshakespeare.txt",  # in data_dir or its folder text; empty: the passages of the package
            "data_dir": "",  # empty: the folder in MLFUNCS_DATA
            "length": 97,  # characters of a row, all but the first of which are predicted
            "stride": 32,  # from the start of a training row to that of the next
            "test_fraction": 0.1,
            **fields,
        }
    )


def facts(**fields: object) -> ml_collections.ConfigDict:
    """A knowledge base in sentences, every word a token."""
    return ml_collections.ConfigDict(
        {
            "name": "facts",
            "seed": 0,  # of what is true, and of who is told what
            "subjects": 80,
            "relations": 4,
            "objects": 10,
            "background": 40,  # subjects that are told in all six forms
            "told": (0, 2),  # forms in which facts of the others are told; the test asks for them in the other forms
            **fields,
        }
    )


def language(
    method: str, data: ml_collections.ConfigDict, teacher: ml_collections.ConfigDict | None = None
) -> ml_collections.ConfigDict:
    """A language model; `teacher` is a language config too."""
    config = base("language")
    config.method = method  # training, distillation
    config.data = data
    config.model = {
        "name": "language",
        "width": 128,
        "depth": 4,
        "heads": 4,
        "expansion": 4,
        "dropout": 0.0,
        "tie_weights": True,
        "dtype": "float32",
    }
    config.optimizer = optimizer("adamw", 3e-3)
    config.optimizer.schedule, config.optimizer.clip = "cosine", 1.0
    config.ema_decay = 0.99
    config.batch_size = 32
    # Rows measured at once, texts shown, and responses of the teacher by which a student is measured.
    config.evaluation = {"block": 256, "samples": 4, "responses": 256}
    # Texts: so many tokens after the prompt (0: as many as a row has), top_k 0: all tokens may be drawn.
    config.sampling = {"prompt": "", "length": 0, "temperature": 1.0, "top_k": 0}
    config.teacher = teacher if teacher is not None else {}
    config.distillation = {
        "divergence": "forward",  # KL(teacher || student); or "reverse", "jensen_shannon"
        "mixture": 0.5,  # of Jensen-Shannon
        "temperature": 1.0,  # of both next-token distributions
        "normalize_by_length": True,
        "prompt_length": 2,  # tokens of a row that are given
        "fresh": "student",  # who writes responses anew in every step: "student" or "teacher"
        "fresh_fraction": 0.5,  # of the sequences; the others are stored ones
        "stored": "teacher",  # whose: responses that the teacher wrote once, or the rows of the "data"
        "sampling_temperature": 1.0,
    }
    return config


def condition(**fields: object) -> ml_collections.ConfigDict:
    """How a network with `class_condition` or `token_condition` is trained and guided."""
    return ml_collections.ConfigDict(
        {
            "dropout": 0.1,  # share of examples whose condition is left out, for guidance
            "guidance": 1.0,  # scale of classifier-free guidance; 0: no condition, 1: the condition alone
            "prompt": "",  # caption of all samples; empty: those of the test set in turn
            **fields,
        }
    )


def residual_mlp(**fields: object) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "mlp",
            "width": 256,
            "depth": 3,
            "fourier_features": 64,
            "fourier_scale": from_method(float),
            "dropout": from_method(float),
            "norm": from_method(str),
            "time_conditioning": "additive",
            "class_condition": False,
            "dtype": "float32",
            **fields,
        }
    )


def unet(**fields: object) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "unet",
            "channels": 32,
            "channel_multipliers": (1, 2, 2),
            "blocks_per_level": 1,
            "attention_resolutions": (),
            "head_channels": 0,  # 0: one head
            "fourier_scale": from_method(float),
            "dropout": from_method(float),
            "norm": from_method(str),
            "time_conditioning": "scale_shift",
            "class_condition": False,
            "dtype": "float32",
            "remat": False,
            **fields,
        }
    )


def dit(**fields: object) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "dit",
            "patch": 2,
            "width": 128,
            "depth": 4,
            "heads": 4,
            "expansion": 4,
            "fourier_scale": from_method(float),
            "dropout": from_method(float),
            "class_condition": False,
            "dtype": "float32",
            **fields,
        }
    )


def distillation(teacher: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A student of a classifier, with its data. A teacher that is there already: `config.teacher = {"workdir": DIR}`."""
    config = base("distillation")
    config.teacher = teacher
    config.data = teacher.data.copy_and_resolve_references()
    # A sum of weighted losses by name, their options in brackets; experiments/tasks/distillation/objectives.py has all.
    config.objective = "0.1 * cross_entropy + 0.9 * kullback_leibler(temperature=4)"
    config.optimizer.schedule = "cosine"
    return config


def score_distillation(method: str, teacher: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A one-step generator from a diffusion run: its network, data and judge, and the settings of every method."""
    config = base("score_distillation")
    # distribution_matching, variational, guided_variational, entropic, identity, forgetting
    config.method = method
    config.teacher = teacher
    for name in ("data", "model", "evaluation"):
        config[name] = teacher[name].copy_and_resolve_references()
    del config.evaluation["steps"]
    config.optimizer = optimizer(learning_rate=1e-4)
    config.critic_optimizer = optimizer(learning_rate=1e-4)
    config.distillation = {
        "sigma_init": 2.5,  # the level at which the teacher's network becomes the generator
        "lowest_level": 0.02,  # of the levels at which scores are compared, as shares of the teacher's Karras range
        "highest_level": 0.98,
        "critic_steps": 1,  # of the critic for each of the generator
        "entropy_weight": 0.5,  # of entropic
        "lowest_guidance": 0.5,  # of guided_variational
        "highest_guidance": 4.0,
        "alpha": 1.2,  # of identity and forgetting
    }
    # Distribution backtracking: so many degraded teachers, each after so many steps more on what the untrained generator
    # draws, and how many steps each is the target. 0 checkpoints: the teacher from the start.
    config.backtracking = {"checkpoints": 0, "record_steps": 100, "interval": 1000}
    config.forgetting = {
        "label": 0,  # the class that is forgotten
        "override": 1,  # what the teacher is told in its place; -1: any other class
        "share": 0.5,  # of a batch drawn under the forgotten class
        "remain_coefficient": 1.0,
        "forget_coefficient": 0.01,
    }
    return config
