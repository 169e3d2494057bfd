"""What is learnt: tokens, batches, loss, score, and how a prompt is answered.

The trainer knows no task by name; it asks for the five things of `Task`. The command line asks for those of `RunTask`.
"""

from handmade.tasks.arithmetic import ARITHMETIC
from handmade.tasks.base import Batch, Choice, Drawn, GeneratedTask, RunTask, Say, Tables, Task
from handmade.tasks.language import LanguageTask
from handmade.tasks.translation.task import TranslationTask
from handmade.tasks.translation.translator import Translation, TranslationConfig, Translator

# What `handmade train` takes by name and makes from its options alone.
TASKS: dict[str, type[GeneratedTask]] = {task.name: task for task in ARITHMETIC}

__all__ = [
    "TASKS",
    "Batch",
    "Choice",
    "Drawn",
    "GeneratedTask",
    "LanguageTask",
    "RunTask",
    "Say",
    "Tables",
    "Task",
    "Translation",
    "TranslationConfig",
    "TranslationTask",
    "Translator",
]
