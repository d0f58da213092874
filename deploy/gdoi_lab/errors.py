"""The one exception whose text is for the operator."""


class LabError(Exception):
    """Something outside the code is wrong; the text is one clear sentence."""
