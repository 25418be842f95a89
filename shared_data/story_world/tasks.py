"""All tasks over the story world in one place: records with known truth, and the reward of any completion.

| generator | record | used by |
|---|---|---|
| `questions(seed, split)` | `Task` with the right reply, also "The story does not say." | instruction tuning, evaluation, GRPO |
| `multiple_choice(seed, split)` | `MultipleChoice`: four choices, the index of the right one | the evaluation harness |
| `requests(seed, split)` | `Task`: write a story with these words | instruction tuning, PPO, GRPO |
| `preference_pairs(seed, split)` | `PreferencePair` with the reason | reward model, DPO |
| `reward(prompt, reply)` | a number in [0, 1] | PPO, GRPO, evaluation |
"""

from shared_data.story_world.preferences import preference_pairs
from shared_data.story_world.questions import answer, multiple_choice, question_prompt, questions
from shared_data.story_world.records import DOES_NOT_SAY, MultipleChoice, PreferencePair, Task
from shared_data.story_world.requests import Request, Verdict, parse_request, requests, verify
from shared_data.story_world.rewards import RewardParts, reward, story_reward

__all__ = [
    "DOES_NOT_SAY",
    "MultipleChoice",
    "PreferencePair",
    "Request",
    "RewardParts",
    "Task",
    "Verdict",
    "answer",
    "multiple_choice",
    "parse_request",
    "preference_pairs",
    "question_prompt",
    "questions",
    "requests",
    "reward",
    "story_reward",
    "verify",
]
