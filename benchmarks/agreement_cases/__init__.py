"""The comparisons of :mod:`benchmarks.agreement`: a file for each public repository.

Each has ``SOURCE``, what it compares with, and ``compare``, which runs both sides on the tiny model.
"""

CASES = {
    "rledit": ("rledit",),
    "hiedit": ("hiedit",),
    "malmen": ("malmen",),
    "mend": ("mend",),
    "dafnet": ("dafnet",),
    "ultraedit": ("ultraedit",),
    "rome": ("rome",),
    "memit": ("memit",),
    "alphaedit": ("memit", "memit-seq", "alphaedit", "rect", "prune", "ft-l"),
    "rect": ("rect",),
    "prune": ("prune",),
    "easyedit": ("fine-tune", "ft-l", "pmet", "simie"),
    "easyedit_memories": ("grace", "wise"),
    "t_patcher": ("t-patcher",),
    "nas": ("memit-seq-nas",),
    "anyedit": ("anyedit",),
    "rlsedit": ("rlsedit",),
    "lora": ("lora",),
    "locft": ("locft-bf",),
    "wikibigedit": ("lora-merge",),
}
"""The methods of each file, by their rows' names."""
