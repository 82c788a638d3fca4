cimport cython

from shardnet.watcher cimport _sys
from shardnet.watcher.engine cimport Engine

cdef class Turns:
    cdef public object loop
    cdef Engine _engine
    cdef object _heartbeat_kept
    cdef unsigned long long* _heartbeat

    @cython.locals(engine=Engine, until_ns="long long", now_ns="long long", left_s=double)
    cpdef take(self, double timeout_s)
    cdef _first_timer(self)
    cdef bint _is_wanted(self, timer) except -1
