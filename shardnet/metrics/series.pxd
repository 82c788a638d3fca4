from shardnet.watcher cimport _sys

cdef class Series:
    cdef object _counts_kept, _values_kept
    cdef unsigned long long* _counts
    cdef double* _values
    cdef Py_ssize_t _at
    cpdef settle(self, place)
    cdef _unplaced(self)

cdef class CounterSeries(Series):
    cpdef inc(self, double amount=*)

cdef class GaugeSeries(Series):
    cpdef set(self, double value)
    cpdef inc(self, double amount=*)
    cpdef dec(self, double amount=*)

cdef class HistogramSeries(Series):
    cdef object _bounds_kept
    cdef double* _bounds
    cdef Py_ssize_t _buckets
    cpdef observe(self, double value)
