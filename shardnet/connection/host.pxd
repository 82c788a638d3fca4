from shardnet.watcher._sys cimport SwapBuffer
from shardnet.watcher.engine cimport Engine

cdef class Host:
    cdef readonly Engine engine
    cdef readonly SwapBuffer swap
    cdef readonly object loop
    cdef public object limits
    cdef readonly object handler
    cdef readonly object finished
