cimport cython

from shardnet.watcher cimport _sys

cdef Py_ssize_t BATCH_SIZE, COMPLETION_LATENCY_NS, LOOP_BUSY_NS, LOOP_LAG_NS, TURN_DURATION_NS
cdef Py_ssize_t LOOP_BUCKETS, BATCHES, LAG_FIRST, SAMPLE_EVERY
cdef unsigned long long MOMENT_NS, STALL_MAX_NS

cdef class Meter:
    cdef object _cells_kept, _loop_bounds_kept, _batch_bounds_kept
    cdef unsigned long long* _cells
    cdef unsigned long long* _loop_bounds
    cdef unsigned long long* _batch_bounds
    cdef unsigned long long _moment_ns
    cdef readonly unsigned long long woke_ns
    cdef readonly bint at_work
    cdef public object overseer
    cdef public bint overseen
    cdef public unsigned long long slow_ns
    cdef Py_ssize_t _reads_to_sample

    cdef int poll(self, _sys.Poller poller, wait_s) except -1
    cpdef begin_turn(self, unsigned long long now_ns)
    @cython.locals(woke_ns="unsigned long long", busy_ns="unsigned long long")
    cpdef unsigned long long end_turn(self, unsigned long long now_ns) except? 0
    cpdef note_batch(self, Py_ssize_t size)
    cpdef note_read(self)
    cpdef sample(self, unsigned long long now_ns)
    @cython.locals(moment_ns="unsigned long long", count="unsigned long long")
    cdef _look_back(self, unsigned long long woke_ns, unsigned long long now_ns)
