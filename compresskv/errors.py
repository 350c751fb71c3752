"""The exceptions that are a message to the user rather than a defect."""


class UserError(ValueError):
    """A mistake in what the user asked for, or something the machine refuses.

    The message is one sentence that names the field, the value and the fix; `run.py` prints it without a traceback.
    """


class PromptError(UserError):
    """One prompt has no answer, though others may have: memory ran out, or numbers are not finite."""


class NonFiniteError(PromptError):
    """A model computed logits that are infinite or no numbers, so there is no answer to give."""
