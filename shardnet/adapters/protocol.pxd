from shardnet.connection._steps cimport try_in
from shardnet.connection.callback cimport CallbackConnection
from shardnet.watcher._sys cimport flag

cdef int OPEN

cdef class ProtocolConnection(CallbackConnection):
    cdef readonly object _transport
    cdef object _protocol
    cdef object _data_received
    cdef flag _wants_buffers
    cdef unsigned long long _written_before
    cpdef on_progress(self)
    cpdef _on_sending_over(self)
    cdef _on_peer_ended(self)
    cdef _deliver(self, data)
    cpdef _read_on(self)
    cdef bint _tell_end(self) except -1
    cdef _put_before(self, data)
