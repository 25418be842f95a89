"""Small lists of English words for the quality filters."""

# The eight words of Gopher's stop-word filter (Rae et al. 2021, appendix A.1.1): prose has at least two of them.
GOPHER_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})

# The commonest function words: a third to a half of all running words of English prose, and few of other languages'.
_FUNCTION_WORDS = """
the a an this that these those and or but so if because when while as than then
i you he she it we they me him her us them my your his its our their who what which
is am are was were be been being do does did have has had will would can could shall should may might must
to of in on at by for from with about into over under after before between through up down out off again
not no yes all some any each every both few more most other such only own same too very just also there here
where why how
"""
ENGLISH_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
