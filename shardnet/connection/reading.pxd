cimport cython

from shardnet.connection cimport _steps
from shardnet.connection.resume cimport Waiter
from shardnet.connection.stream cimport Stream
from shardnet.watcher._sys cimport flag

cdef int IDLE, OPEN, PARKED
cdef Py_ssize_t CHUNK_MAX_BYTES

cdef class ReadStream(Stream):
    cdef readonly object _leftover
    cdef Waiter _waiter

    @cython.locals(read=Read)
    cpdef read(self, Py_ssize_t n=*)
    @cython.locals(chunk=Chunk)
    cdef _next_chunk(self)
    cpdef pause(self)
    cpdef resume(self)
    cpdef take(self, Py_ssize_t size)
    cpdef fill(self, Py_ssize_t have, Py_ssize_t size)
    cpdef Waiter park(self, Py_ssize_t size)
    cdef _receive(self, Py_ssize_t size)
    cpdef _check_sole_reader(self)
    cpdef Py_ssize_t _buffered(self) except -1
    cdef _put_behind(self, data)
    cpdef _consume(self, Py_ssize_t size)
    cpdef on_received(self, Py_ssize_t start, Py_ssize_t size)
    cpdef on_end(self)
    cdef _resume_reader(self)
    cpdef _release_reader(self)
    cdef _end(self, int reason)
    cpdef bint _nothing_pending(self) except -1

cdef class _Read(_steps.Awaitable):
    cdef ReadStream _conn
    cdef int _size
    cdef flag _parked
    cpdef advance(self)
    cpdef abandon(self)
    cdef _look(self)
    cdef _leave(self)

cdef class Read(_Read):
    cdef _look(self)

cdef class Chunk(_Read):
    cdef _look(self)

cdef class Fill(_Read):
    cdef Py_ssize_t _have
    cdef _look(self)
