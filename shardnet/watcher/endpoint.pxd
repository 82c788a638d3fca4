cimport cython

from shardnet.watcher cimport _sys

cdef Py_ssize_t TRAFFIC_RECEIVED, TRAFFIC_SENT

cdef class Agenda:
    cdef unsigned long long* cells
    cdef object _cells_kept
    cdef readonly object rearm
    cdef public list ready
    cdef public object pending
    cdef public object failing
    cdef public int receives_left
    cpdef forget(self)
    cpdef count_failure(self, op, error)

cdef class Endpoint:
    cdef Agenda _agenda
    cdef readonly int fd
    cdef readonly unsigned short traffic
    cdef public _sys.flag _proceed_due
    cdef public unsigned long long received_bytes
    cdef public unsigned long long sent_bytes
    cpdef note_events(self, unsigned int events)
    cpdef proceed(self)
    cpdef int abandon(self) except? -1
    cpdef _ask_proceed(self)
    cpdef _rearm(self, unsigned int events)
    cpdef _count_received(self, Py_ssize_t size)
    cpdef _count_sent(self, Py_ssize_t size)

cdef class Guest:
    cdef readonly object token
