from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ProbeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROBE_KIND_UNSPECIFIED: _ClassVar[ProbeKind]
    INPUT: _ClassVar[ProbeKind]
    ACTIVATION: _ClassVar[ProbeKind]
    OUTPUT: _ClassVar[ProbeKind]
PROBE_KIND_UNSPECIFIED: ProbeKind
INPUT: ProbeKind
ACTIVATION: ProbeKind
OUTPUT: ProbeKind

class Envelope(_message.Message):
    __slots__ = ("schema_version", "agent_id", "boot_epoch", "seq", "model", "version", "digest", "window", "deployment")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    agent_id: str
    boot_epoch: int
    seq: int
    model: str
    version: str
    digest: str
    window: Window
    deployment: Deployment
    def __init__(self, schema_version: _Optional[int] = ..., agent_id: _Optional[str] = ..., boot_epoch: _Optional[int] = ..., seq: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., window: _Optional[_Union[Window, _Mapping]] = ..., deployment: _Optional[_Union[Deployment, _Mapping]] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("at_unix_ms", "probes", "not_probed", "provider")
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    NOT_PROBED_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    at_unix_ms: int
    probes: _containers.RepeatedCompositeFieldContainer[Probe]
    not_probed: _containers.RepeatedCompositeFieldContainer[NotProbed]
    provider: str
    def __init__(self, at_unix_ms: _Optional[int] = ..., probes: _Optional[_Iterable[_Union[Probe, _Mapping]]] = ..., not_probed: _Optional[_Iterable[_Union[NotProbed, _Mapping]]] = ..., provider: _Optional[str] = ...) -> None: ...

class NotProbed(_message.Message):
    __slots__ = ("name", "op", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    op: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., op: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("name", "op", "tensor", "channels", "axis", "kind", "position", "exact_zero")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXACT_ZERO_FIELD_NUMBER: _ClassVar[int]
    name: str
    op: str
    tensor: str
    channels: int
    axis: int
    kind: ProbeKind
    position: int
    exact_zero: bool
    def __init__(self, name: _Optional[str] = ..., op: _Optional[str] = ..., tensor: _Optional[str] = ..., channels: _Optional[int] = ..., axis: _Optional[int] = ..., kind: _Optional[_Union[ProbeKind, str]] = ..., position: _Optional[int] = ..., exact_zero: _Optional[bool] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("start_unix_ms", "end_unix_ms", "probes")
    START_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    END_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    start_unix_ms: int
    end_unix_ms: int
    probes: _containers.RepeatedCompositeFieldContainer[ProbeSummary]
    def __init__(self, start_unix_ms: _Optional[int] = ..., end_unix_ms: _Optional[int] = ..., probes: _Optional[_Iterable[_Union[ProbeSummary, _Mapping]]] = ...) -> None: ...

class ProbeSummary(_message.Message):
    __slots__ = ("probe", "n", "active", "nonfinite", "fraction_sum", "fraction_sq_sum", "mean", "m2", "min", "max", "mean_histogram", "max_histogram")
    PROBE_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_SUM_FIELD_NUMBER: _ClassVar[int]
    FRACTION_SQ_SUM_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    M2_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    MEAN_HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    MAX_HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    probe: Probe
    n: int
    active: _containers.RepeatedScalarFieldContainer[int]
    nonfinite: _containers.RepeatedScalarFieldContainer[int]
    fraction_sum: _containers.RepeatedScalarFieldContainer[float]
    fraction_sq_sum: _containers.RepeatedScalarFieldContainer[float]
    mean: _containers.RepeatedScalarFieldContainer[float]
    m2: _containers.RepeatedScalarFieldContainer[float]
    min: _containers.RepeatedScalarFieldContainer[float]
    max: _containers.RepeatedScalarFieldContainer[float]
    mean_histogram: Histogram
    max_histogram: Histogram
    def __init__(self, probe: _Optional[_Union[Probe, _Mapping]] = ..., n: _Optional[int] = ..., active: _Optional[_Iterable[int]] = ..., nonfinite: _Optional[_Iterable[int]] = ..., fraction_sum: _Optional[_Iterable[float]] = ..., fraction_sq_sum: _Optional[_Iterable[float]] = ..., mean: _Optional[_Iterable[float]] = ..., m2: _Optional[_Iterable[float]] = ..., min: _Optional[_Iterable[float]] = ..., max: _Optional[_Iterable[float]] = ..., mean_histogram: _Optional[_Union[Histogram, _Mapping]] = ..., max_histogram: _Optional[_Union[Histogram, _Mapping]] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("scale", "zeros", "positive", "negative")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    ZEROS_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    scale: int
    zeros: _containers.RepeatedScalarFieldContainer[int]
    positive: Buckets
    negative: Buckets
    def __init__(self, scale: _Optional[int] = ..., zeros: _Optional[_Iterable[int]] = ..., positive: _Optional[_Union[Buckets, _Mapping]] = ..., negative: _Optional[_Union[Buckets, _Mapping]] = ...) -> None: ...

class Buckets(_message.Message):
    __slots__ = ("row_lengths", "index", "count")
    ROW_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    row_lengths: _containers.RepeatedScalarFieldContainer[int]
    index: _containers.RepeatedScalarFieldContainer[int]
    count: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, row_lengths: _Optional[_Iterable[int]] = ..., index: _Optional[_Iterable[int]] = ..., count: _Optional[_Iterable[int]] = ...) -> None: ...
