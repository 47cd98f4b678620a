"""What makes transformers' Auto classes and pipelines give our classes for our folders, after `import synopsis`.

    import synopsis, transformers
    transformers.AutoModelForCausalLM.from_pretrained("results/demo/models/gist-1-s0")     # GistLlamaForCausalLM

The config.json of our folders names a `model_type` that transformers alone does not know, so that it refuses them
instead of reading them as plain models, without their masks. The architecture stands beside it, as `base_model_type`.
In memory `config.model_type` is the architecture: by it transformers and peft find what fits the model.
"""

from __future__ import annotations

import copy
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the mixin finds on the configuration of transformers that it is put before
    Configuration = Any
else:
    Configuration = object

MODEL_TYPE = "synopsis (import synopsis first)"
"""As transformers shows it when it does not know the type."""
CONFIGURATIONS = "transformers.models.auto.configuration_auto"
"""The module of AutoConfig."""


class ConfigurationMixin(Configuration):
    """Put before a configuration class of transformers: config.json is written, and read, with our model type."""

    compressor_kind: str

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to config.json."""
        written = super().to_diff_dict()
        own = {"model_type": MODEL_TYPE, "base_model_type": self.model_type, "compressor_kind": self.compressor_kind}
        return {**written, **own}

    @classmethod
    def get_config_dict(cls, *arguments: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, options = super().get_config_dict(*arguments, **options)
        return of_architecture(values), options


def configuration_class(kind: str, base: type, name: str, module: str) -> Any:
    """The configuration class of the model class `name`, from that of the architecture; both are found in `module`."""
    # The initialisation of the base, as each subclass would otherwise get one of its own that validates nothing.
    body = {"__module__": module, "__init__": base.__init__, "compressor_kind": kind}  # type: ignore[misc]
    return type(f"{name}Config", (ConfigurationMixin, base), body)


def own_configuration(config: Any, cls: Any) -> Any:
    """The configuration as one of the class `cls`; a copy, where it is of another."""
    if isinstance(config, cls):
        return config
    own = copy.copy(config)
    own.__class__ = cls
    return own


def of_architecture(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a config.json, with the architecture as their model type."""
    kept = {key: value for key, value in values.items() if key not in ("base_model_type", "compressor_kind")}
    return kept | ({"model_type": values["base_model_type"]} if "base_model_type" in values else {})


def _register() -> None:
    """Make our model type known; the classes are made when a folder needs them."""
    from transformers import PreTrainedConfig

    class CompressorConfig(PreTrainedConfig):
        """Stands for the configuration classes of all our models."""

        model_type = MODEL_TYPE

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
            from synopsis.compressors.registry import compressor_class
            from synopsis.compressors.section import kinds

            kind, values = config_dict.get("compressor_kind"), of_architecture(config_dict)
            if kind not in kinds() or values["model_type"] == MODEL_TYPE:
                raise ValueError(f"expected base_model_type, and compressor_kind as one of {', '.join(kinds())}")
            return compressor_class(kind, values["model_type"]).config_class.from_dict(values, **options)

    sys.modules[CONFIGURATIONS].AutoConfig.register(MODEL_TYPE, CompressorConfig)


class _AfterConfigurations:
    """Finds the module of AutoConfig as Python does, and registers our model type once the module is there."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != CONFIGURATIONS:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register our model type now, or as soon as transformers' AutoConfig is imported: it takes a second to import."""
    if CONFIGURATIONS in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterConfigurations())


def reason_of(error: Exception) -> str:
    """An error of transformers in one line; none advises to run code that came with a model."""
    if "trust_remote_code" in str(error):
        return "it needs Python code of its own (auto_map), which was not run: Synopsis runs no code of model folders"
    return (str(error) or type(error).__name__).splitlines()[0]
