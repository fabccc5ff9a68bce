"""The PEFT type of the nullspace adapter."""

from __future__ import annotations

from peft import PeftType

_NAME = "NULLSPACE_LORA"

RELEASED_NAME = (
    f"{_NAME}, a method of singer_hf: install singer_hf and `import singer_hf` before PEFT loads this adapter"
)
"""The type's name in a released adapter's configuration. PEFT stops at a type that it does not know with a KeyError
of the name and nothing else, so the name says what to do; a message in PEFT for unknown types would remove this. With
this package imported it means the same as the plain name."""


def _peft_type(name: str) -> PeftType:
    """The member of PEFT's enumeration with this name, added where it is missing.

    PEFT resolves a saved adapter's class by this enumeration and has no public way to extend it; a public registry of
    types there would remove this function. A subclass of `LoraConfig` that keeps the type LORA is not enough: PEFT
    would then load it as a plain `LoraConfig` and drop its fields.
    """
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        PeftType._member_names_.append(name)
        type.__setattr__(PeftType, name, member)
    return PeftType[name]


NULLSPACE_LORA = _peft_type(_NAME)
