from shardnet.connection._steps cimport try_in_with
from shardnet.connection.connection cimport Connection

cdef int OPEN

cdef class CallbackConnection(Connection):
    cdef object _context
    cpdef resume(self)
    cpdef on_received(self, Py_ssize_t start, Py_ssize_t size)
    cpdef on_end(self)
    cpdef on_progress(self)
    cdef _on_peer_ended(self)
    cdef _deliver(self, data)
    cpdef _read_on(self)
    cdef bint _wants_more(self) except -1
