"""The phase-1 proposal: what is offered, read and chosen (RFC 2409 section 5, appendix A).

Nothing here knows an exchange: a choice is made from a proposal and the policy alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..wire import attributes as attr
from ..wire.attributes import Attribute
from ..wire.registry import (
    AuthMethod,
    Doi,
    Encryption,
    Group,
    Hash,
    LifeType,
    NotifyType,
    PhaseOneAttribute,
    PhaseOneTransform,
    Protocol,
)
from ..wire.sa import Proposal, SecurityAssociation, Transform
from .errors import ProtocolError
from .isakmp import Suite
from .phase1 import Phase1Config

SIT_IDENTITY_ONLY = 1  # RFC 2407 section 4.2.1
A = PhaseOneAttribute


class Terms(NamedTuple):
    """What one transform says; ``lifetime`` in seconds, None where it names none."""

    suite: Suite
    method: AuthMethod
    lifetime: int | None


class Choice(NamedTuple):
    """One transform as it came, and the proposal it came in."""

    proposal: Proposal
    transform: Transform
    terms: Terms


def _transform(number: int, suite: Suite, method: AuthMethod, lifetime: int) -> Transform:
    return Transform(
        number,
        PhaseOneTransform.KEY_IKE,
        (
            Attribute(A.ENCRYPTION_ALGORITHM, suite.encryption),
            Attribute(A.KEY_LENGTH, suite.key_length),
            Attribute(A.HASH_ALGORITHM, suite.hash),
            Attribute(A.AUTHENTICATION_METHOD, method),
            Attribute(A.GROUP_DESCRIPTION, suite.group),
            Attribute(A.LIFE_TYPE, LifeType.SECONDS),
            attr.uint32(A.LIFE_DURATION, lifetime),
        ),
    )


def offer(config: Phase1Config) -> SecurityAssociation:
    """One proposal, no SPI, a transform per method and suite: what everybody understands."""
    wanted = [(suite, method) for method in config.methods for suite in config.suites]
    transforms = tuple(
        _transform(number, suite, method, config.lifetime)
        for number, (suite, method) in enumerate(wanted, 1)
    )
    proposal = Proposal(1, Protocol.PROTO_ISAKMP, b"", transforms)
    # RFC 6407 section 5.2: "Situation (4 octets) -- MUST be zero"; others insist on it.
    doi = config.dois[0]
    situation = SIT_IDENTITY_ONLY if doi == Doi.IPSEC else 0
    return SecurityAssociation(doi, situation, (proposal,))


def read_transform(transform: Transform) -> Terms | None:
    """What an offered transform says, None for what we do not do.

    An attribute we do not know makes the transform unacceptable (RFC 2408 section 3.6), not the
    message. Raises DecodeError only for an attribute of impossible form.
    """
    if transform.transform_id != PhaseOneTransform.KEY_IKE:
        return None
    values: dict[int, int] = {}
    lifetime: int | None = None
    life_type = 0
    for attribute in transform.attributes:
        if attribute.type == A.LIFE_TYPE:
            life_type = attribute.number()
        elif attribute.type == A.LIFE_DURATION:
            if life_type == LifeType.SECONDS:
                lifetime = attribute.number()
        elif attribute.type in values:
            return None
        else:
            values[attribute.type] = attribute.number()
    try:
        suite = Suite(
            Encryption(values.pop(A.ENCRYPTION_ALGORITHM)),
            values.pop(A.KEY_LENGTH),
            Hash(values.pop(A.HASH_ALGORITHM)),
            Group(values.pop(A.GROUP_DESCRIPTION)),
        )
        method = AuthMethod(values.pop(A.AUTHENTICATION_METHOD))
    except (KeyError, ValueError):
        return None
    return None if values else Terms(suite, method, lifetime)


def describe(sa: SecurityAssociation) -> str:
    """What a peer offered, for the log of a refusal: attribute numbers as they came."""
    words = []
    for proposal in sa.proposals:
        for transform in proposal.transforms:
            numbers = {a.type: a.value for a in transform.attributes if isinstance(a.value, int)}
            names = (
                ("enc", A.ENCRYPTION_ALGORITHM),
                ("len", A.KEY_LENGTH),
                ("hash", A.HASH_ALGORITHM),
                ("auth", A.AUTHENTICATION_METHOD),
                ("group", A.GROUP_DESCRIPTION),
            )
            words.append("/".join(f"{n}={numbers[k]}" for n, k in names if k in numbers))
    return ", ".join(words[:8]) + (" ..." if len(words) > 8 else "")


def choose(sa: SecurityAssociation, config: Phase1Config) -> Choice:
    """The responder's choice: its own first preference among what was offered.

    Raises ProtocolError with NO_PROPOSAL_CHOSEN; DecodeError as ``read_transform``.
    """
    found: dict[tuple[Suite, AuthMethod], Choice] = {}
    if sa.doi in config.dois:
        for proposal in sa.proposals:
            if proposal.protocol_id != Protocol.PROTO_ISAKMP:
                continue
            for transform in proposal.transforms:
                terms = read_transform(transform)
                if terms is not None:
                    key = (terms.suite, terms.method)
                    found.setdefault(key, Choice(proposal, transform, terms))
    for method in config.methods:
        for suite in config.suites:
            if (suite, method) in found:
                return found[suite, method]
    raise ProtocolError(
        f"DOI {sa.doi}, offered {describe(sa) or 'nothing'}",
        "RFC 2408 section 5.4",
        NotifyType.NO_PROPOSAL_CHOSEN,
    )


def check_choice(offered: SecurityAssociation, chosen: SecurityAssociation) -> Terms:
    """RFC 2408 section 4.2: message 2 has exactly one of the offered transforms, unchanged.

    Raises ProtocolError; DecodeError for an attribute of impossible form.
    """
    section = "RFC 2408 section 4.2"
    if (chosen.doi, chosen.situation) != (offered.doi, offered.situation):
        what = f"message 2 has DOI {chosen.doi}, situation {chosen.situation}"
        raise ProtocolError(what, section)
    if len(chosen.proposals) != 1 or len(chosen.proposals[0].transforms) != 1:
        raise ProtocolError("message 2 has not one transform", section)
    (ours,), (proposal,) = offered.proposals, chosen.proposals
    if (proposal.number, proposal.protocol_id) != (ours.number, ours.protocol_id):
        raise ProtocolError("message 2 is no choice of our proposal", section)
    (transform,) = proposal.transforms
    # RFC 2409 section 5: "If the initiator of an exchange notices that attribute values have
    # changed [...] from an offer made, that response MUST be rejected." HASH_R would not tell.
    same = next((t for t in ours.transforms if t.number == transform.number), None)
    if same is None or _values(same) != _values(transform):
        what = f"peer chose what was not offered: {transform.number}: {describe(chosen)}"
        raise ProtocolError(what, section)
    terms = read_transform(same)
    if terms is None:
        raise AssertionError("an offer that cannot be read")
    return terms


def _values(transform: Transform) -> tuple[int, list[tuple[int, int]]]:
    """Of a phase-1 transform, whichever of the two encodings its attributes have."""
    return transform.transform_id, sorted((a.type, a.number()) for a in transform.attributes)


def parse_suites(keywords: Iterable[str], known: dict[str, Suite]) -> tuple[Suite, ...]:
    """Suites by swanctl keyword; raises ValueError naming what is allowed."""
    found = []
    for keyword in keywords:
        if keyword not in known:
            raise ValueError(f"{keyword!r} is none of {', '.join(sorted(known))}")
        found.append(known[keyword])
    return tuple(found)
