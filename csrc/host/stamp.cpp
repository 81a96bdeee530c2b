// What tells whether a network changed; its twin and its words are in cnnviz/models/state.py.
#include <unordered_set>
#include <vector>

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace cnnviz {
namespace {

bool is_plain(PyObject* value) {
  const PyTypeObject* kind = Py_TYPE(value);
  return value == Py_None || kind == &PyLong_Type || kind == &PyUnicode_Type || kind == &PyBool_Type || kind == &PyFloat_Type;
}

bool is_plain_tuple(PyObject* value) {
  if (!PyTuple_CheckExact(value)) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value); ++i)
    if (!is_plain(PyTuple_GET_ITEM(value, i))) return false;
  return true;
}

py::object owned(PyObject* made) {
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

struct Named {
  py::object key, value;
};

// A dictionary's items, held, since what is asked about them may run anything.
std::vector<Named> items(PyObject* table) {
  std::vector<Named> made;
  PyObject *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(table, &at, &key, &value);)
    made.push_back({py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value)});
  return made;
}

class Stamp {
 public:
  Stamp(const py::function& held, const py::frozenset& torchs) : held_(held), torchs_(torchs) {}

  void module(const py::object& one, const py::dict& own) {
    add(one);
    add(py::type::of(one));
    for (const Named& child : items(py::object(own["_modules"]).ptr())) {
      seen_.append(child.key);
      add(child.value);
    }
    for (const char* table : {"_parameters", "_buffers"})
      for (const Named& named : items(py::object(own[table]).ptr()))
        if (!named.value.is_none()) tensor(named.value);
    for (const Named& named : items(own.ptr())) {
      if (torchs_.contains(named.key)) continue;
      PyObject* value = named.value.ptr();
      seen_.append(is_plain(value) || is_plain_tuple(value) ? named.value : held_(named.value));
    }
  }

  py::tuple made() const { return py::tuple(seen_); }

 private:
  void add(const py::object& one) { seen_.append(owned(PyLong_FromVoidPtr(one.ptr()))); }

  void tensor(const py::object& one) {
    add(one);
    seen_.append(owned(PyObject_CallMethodNoArgs(one.ptr(), data_ptr_.ptr())));
    const bool inference = owned(PyObject_CallMethodNoArgs(one.ptr(), is_inference_.ptr())).ptr() == Py_True;
    seen_.append(inference ? unknown_ : owned(PyObject_GetAttr(one.ptr(), version_.ptr())));
  }

  const py::function& held_;
  const py::frozenset& torchs_;
  const py::str data_ptr_{"data_ptr"}, is_inference_{"is_inference"}, version_{"_version"};
  const py::object unknown_ = py::int_(-1);
  py::list seen_;
};

}  // namespace

py::tuple stamp(const py::object& module, const py::function& held, const py::frozenset& torchs) {
  Stamp stamp(held, torchs);
  std::vector<py::object> parts = {module};
  std::unordered_set<PyObject*> met = {module.ptr()};
  for (size_t i = 0; i < parts.size(); ++i) {
    const py::dict own = parts[i].attr("__dict__");
    stamp.module(parts[i], own);
    for (const Named& child : items(py::object(own["_modules"]).ptr()))
      if (!child.value.is_none() && met.insert(child.value.ptr()).second) parts.push_back(child.value);
  }
  return stamp.made();
}

}  // namespace cnnviz
