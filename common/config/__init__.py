"""A run's configuration: flat kebab-case keys, from profiles (conf/) and overrides, checked before a run starts.

The same keys serve YAML profiles, `[tool.flwr.app.config]`, `flwr run -c`, `mh-pfedhn run -c` and `mh_pfedhn.run`.
"""

from common.config.loading import keys_with_help, load_config, load_run_config, parse_overrides
from common.config.profiles import described_comparisons, described_methods, profiles
from common.config.run import (
    BY_CLIENT,
    DATASETS,
    DEFAULT_PROFILE,
    METHOD_SETTINGS,
    MODELS,
    RUN_NAME,
    RUN_OPTIONS,
    RUNS,
    SITES,
    Config,
    project_dir,
)

__all__ = [
    "BY_CLIENT",
    "DATASETS",
    "DEFAULT_PROFILE",
    "METHOD_SETTINGS",
    "MODELS",
    "RUNS",
    "RUN_NAME",
    "RUN_OPTIONS",
    "SITES",
    "Config",
    "described_comparisons",
    "described_methods",
    "keys_with_help",
    "load_config",
    "load_run_config",
    "parse_overrides",
    "profiles",
    "project_dir",
]
