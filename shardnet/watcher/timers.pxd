cdef class Timer:
    cdef TimerQueue _queue
    cdef readonly double due_s
    cdef readonly object callback
    cpdef bint cancel(self) except -1
    cpdef _take(self)

cdef class TimerQueue:
    cdef readonly list _heap
    cdef object _serial
    cdef Py_ssize_t _dead
    cpdef Timer add(self, double due_s, callback)
    cpdef next_due_s(self)
    cpdef take_due(self, double now_s)
    cpdef clear(self)
    cpdef _bury_one(self)
