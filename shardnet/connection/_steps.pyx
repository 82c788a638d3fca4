"""How awaits step, in C: what `_steps.py` does, name for name, for the compiled build.

What CPython asks of an awaited object for its next step is a slot of its type: `am_send`, or from 3.12 on, for what is
no coroutine, `tp_iternext`. Cython fills the second from `__next__`, which can end only by raising StopIteration with
a frame and a traceback, and the first not at all. So both are put in by hand here. Subclasses inherit them, as long as
they are made in another module. (PEP 492; `PyIter_Send` of CPython's C API.)
"""

cdef extern from "Python.h":
    ctypedef struct PyObject
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    int PyIter_Send(object coro, object value, PyObject** result) except -1
    void Py_DECREF(object value)
    PyObject* PyDict_SetDefault(object mapping, object key, object value) except NULL
    int PyDict_DelItem(object mapping, object key) except -1

cdef extern from *:
    """
    /* The result of an await is the value of a StopIteration, but for None, which no exception at all says as well. */
    static void shardnet_set_result(PyObject *result) {
        if (result == Py_None)
            return;
    #if PY_VERSION_HEX >= 0x030C0000
        /* Used again and again while nobody else holds it: an await asks it for its value, and lets go of it. */
        static PyStopIterationObject *only = NULL;
        if (only == NULL || Py_REFCNT(only) != 1) {
            Py_XDECREF(only);
            only = (PyStopIterationObject *)PyObject_CallNoArgs(PyExc_StopIteration);
            if (only == NULL)
                return;
        }
        Py_INCREF(result);
        Py_XSETREF(only->value, result);
        PyErr_SetRaisedException(Py_NewRef((PyObject *)only));
    #else
        PyObject *error = PyObject_CallOneArg(PyExc_StopIteration, result);
        if (error != NULL) {
            PyErr_SetObject(PyExc_StopIteration, error);
            Py_DECREF(error);
        }
    #endif
    }

    /* What `Context.run` does. `second` may be NULL. */
    static PyObject *shardnet_call(PyObject *context, PyObject *function, PyObject *first, PyObject *second) {
        PyObject *arguments[3] = {NULL, first, second};
        PyObject *result;
        if (PyContext_Enter(context) < 0)
            return NULL;
        result = PyObject_Vectorcall(
            function, arguments + 1, (second == NULL ? 1 : 2) | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        if (PyContext_Exit(context) < 0)
            Py_CLEAR(result);
        return result;
    }

    /* The same, and what it has raised, or None. */
    static PyObject *shardnet_try(PyObject *context, PyObject *function, PyObject *first, PyObject *second) {
        PyObject *result = shardnet_call(context, function, first, second);
        if (result != NULL) {
            Py_DECREF(result);
            Py_RETURN_NONE;
        }
    #if PY_VERSION_HEX >= 0x030C0000
        return PyErr_GetRaisedException();
    #else
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyErr_NormalizeException(&type, &value, &traceback);
        if (traceback != NULL)
            PyException_SetTraceback(value, traceback);
        Py_XDECREF(type);
        Py_XDECREF(traceback);
        return value;
    #endif
    }

    static void shardnet_set_slots(PyObject *type, void *iternext, void *send) {
        PyTypeObject *t = (PyTypeObject *)type;
        t->tp_iternext = (iternextfunc)iternext;
        t->tp_as_async->am_send = (sendfunc)send;
        PyType_Modified(t);
    }
    """
    void shardnet_set_result(PyObject* result)
    void shardnet_set_slots(PyObject* type, void* iternext, void* send)
    PyObject* Py_NewRef(PyObject* value)
    object shardnet_call(object context, object function, object first, PyObject* second)
    object shardnet_try(object context, object function, object first, PyObject* second)

DRIVES = True

from asyncio import tasks


def _find_current():
    """The dict that `_enter_task` and `_leave_task` write to; None where they write elsewhere.

    CPython 3.14 notes the current task in its thread state, and still has a dict of that name, which nobody reads. So
    it is tried out. Calling the two costs more than what they do: 1 % of all that a message costs.
    """
    current = getattr(tasks, "_current_tasks", None)
    mark = object()
    try:
        tasks._enter_task(mark, mark)
    except (RuntimeError, TypeError):  # 3.14 takes only the loop that is running.
        return None
    noted = type(current) is dict and current.get(mark) is mark
    tasks._leave_task(mark, mark)
    return current if noted else None


cdef dict _current = _find_current()


cdef class Awaitable:
    cpdef advance(self):
        raise NotImplementedError

    cpdef abandon(self):
        pass

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)  # Never called: see `_iternext`.

    def send(self, _value):
        value = self.advance()
        if self.over:
            raise StopIteration(value)
        return value

    def throw(self, kind, value=None, traceback=None):
        self.abandon()
        raise thrown(kind, value, traceback)

    def close(self):
        self.abandon()


cdef PyObject* _iternext(PyObject* awaited) except? NULL:
    cdef Awaitable self = <Awaitable>awaited
    cdef object value = self.advance()
    if self.over:
        shardnet_set_result(<PyObject*>value)
        return NULL
    return Py_NewRef(<PyObject*>value)


cdef int _send(PyObject* awaited, PyObject* _value, PyObject** result) except? -1:
    cdef Awaitable self = <Awaitable>awaited
    cdef object value
    result[0] = NULL
    value = self.advance()
    result[0] = Py_NewRef(<PyObject*>value)
    return 0 if self.over else 1  # PYGEN_RETURN, PYGEN_NEXT


# Before any other module can subclass it.
shardnet_set_slots(<PyObject*>Awaitable, <void*>_iternext, <void*>_send)


cdef class Stepper(Awaitable):
    cpdef bint resume(self, waiter, context) except -1:
        raise NotImplementedError

    cpdef run(self):
        raise NotImplementedError


# Made in this module, before the slots of its base were put in.
shardnet_set_slots(<PyObject*>Stepper, <void*>_iternext, <void*>_send)


cpdef step(Stepper stepper, coro):
    cdef PyObject* value = NULL
    cdef int outcome = PyIter_Send(coro, None, &value)
    stepper.over = outcome == 0
    result = <object>value
    Py_DECREF(result)
    return result


def thrown(kind, value, traceback):
    error = kind if isinstance(kind, BaseException) else value
    if not isinstance(error, BaseException):
        error = kind() if value is None else kind(value)
    return error if traceback is None else error.with_traceback(traceback)


cpdef run_in(context, Stepper stepper):
    PyContext_Enter(context)
    try:
        return stepper.run()
    finally:
        PyContext_Exit(context)


cpdef enter_task(loop, task):
    if _current is None or PyDict_SetDefault(_current, loop, task) != <PyObject*>task:
        tasks._enter_task(loop, task)  # Which raises when there is another.


cpdef leave_task(loop, task):
    if _current is None:
        tasks._leave_task(loop, task)
    else:
        PyDict_DelItem(_current, loop)


cpdef call_in(context, function, argument):
    return shardnet_call(context, function, argument, NULL)


cpdef try_in(context, function, argument):
    return shardnet_try(context, function, argument, NULL)


cpdef try_in_with(context, function, first, second):
    return shardnet_try(context, function, first, <PyObject*>second)
