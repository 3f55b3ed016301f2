"""The catalogue: which models there are, how each is to be run, and whether its files are here."""

from filmlet.models import hub_cache
from filmlet.models.checkpoint_files import count_parameters, local_files
from filmlet.models.disk_usage import delete_model, disk_usage
from filmlet.models.download import (
    DownloadProgress,
    download_model,
    download_repository,
    fetch_lora,
)
from filmlet.models.lora_files import inspect_lora, inspect_loras, inspect_model_lora
from filmlet.models.prompt_check import MAX_UNKNOWN, PromptCheck, check_prompt, list_vocabulary
from filmlet.models.registry import REGISTRY, get_card

__all__ = [
    "MAX_UNKNOWN",
    "REGISTRY",
    "DownloadProgress",
    "PromptCheck",
    "check_prompt",
    "count_parameters",
    "delete_model",
    "disk_usage",
    "download_model",
    "download_repository",
    "fetch_lora",
    "get_card",
    "hub_cache",
    "inspect_lora",
    "inspect_loras",
    "inspect_model_lora",
    "list_vocabulary",
    "local_files",
]  # fmt: skip
