cimport cython

from shardnet.connection.connection cimport Connection
from shardnet.connection.reading cimport _Read

cdef int CLOSED, LINGERING, OPEN, IDLE
cdef Py_ssize_t CHUNK_MAX_BYTES

cdef class StreamsConnection(Connection):
    cdef readonly object _transport
    cdef object _reader_buffer
    cdef readonly object _sent_waiters
    cdef public object flow
    @cython.locals(read=ReaderRead)
    cpdef read_for(self, reader, Py_ssize_t n)
    cpdef fill_for(self, reader)
    cpdef drain_plainly(self)
    cpdef on_progress(self)
    cpdef _on_sending_over(self)
    cpdef bint _nothing_pending(self) except -1
    cpdef _on_handler_returned(self, task)

cdef class _ReaderRead(_Read):
    cdef object _reader

cdef class ReaderRead(_ReaderRead):
    cdef _look(self)

cdef class ReaderFill(_ReaderRead):
    cdef _look(self)
