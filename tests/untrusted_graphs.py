"""ONNX models with external data, at every place where a tensor can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import AttributeProto, SparseTensorProto, TensorProto, helper, numpy_helper

VALUES = np.arange(12, dtype=np.float32)
DOMAIN = "some.domain"


def model_of(
    nodes: list[Any],
    constants: list[Any] | tuple[Any, ...] = (),
    functions: list[Any] | tuple[Any, ...] = (),
) -> Any:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [12]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], list(constants))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)


def outside(location: str, dims: tuple[int, ...] = (12,), **more: object) -> Any:
    """Return a model that adds a constant whose values are declared as external data at `location`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], [tensor])


def in_branch(model: Any) -> Any:
    """Return the model with its constants in one branch of an If: with both, nesting would double the size."""
    output = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [12])]
    branch = helper.make_graph(model.graph.node, "b", [], output, model.graph.initializer)
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "o", [], output)
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)
    return model_of([node], [numpy_helper.from_array(np.array(True), "c")])


def in_function(model: Any) -> Any:
    """Return the model with its constant in a function."""
    constant = helper.make_node("Constant", [], ["w"], value=model.graph.initializer[0])
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function(DOMAIN, "f", ["x"], ["y"], [constant, *model.graph.node], imports)
    return model_of([helper.make_node("f", ["x"], ["y"], domain=DOMAIN)], functions=[function])


def in_function_default(model: Any) -> Any:
    """Return the model with its constant as the default of a function's attribute."""
    model = in_function(model)
    model.functions[0].attribute_proto.append(model.functions[0].node[0].attribute[0])
    reference = AttributeProto(name="value", ref_attr_name="value", type=AttributeProto.TENSOR)
    model.functions[0].node[0].attribute[0].CopyFrom(reference)
    return model


def in_attribute(model: Any) -> Any:
    """Return the model with its constant as an attribute of a node."""
    return model_of([helper.make_node("Constant", [], ["w"], value=model.graph.initializer[0]), *model.graph.node])


def in_list(model: Any) -> Any:
    """Return the model with its constant in an attribute that is a list of tensors."""
    return model_of([helper.make_node("Other", ["x"], ["y"], domain=DOMAIN, many=list(model.graph.initializer))])


def sparse_of(model: Any, part: str) -> Any:
    """Return a sparse tensor; part: `values` or `indices`, which is the constant of the model."""
    tensor = SparseTensorProto(dims=[12])
    tensor.values.CopyFrom(numpy_helper.from_array(VALUES, "w"))
    tensor.indices.CopyFrom(numpy_helper.from_array(np.arange(12), "i"))
    getattr(tensor, part).CopyFrom(model.graph.initializer[0])
    return tensor


def in_sparse_values(model: Any) -> Any:
    """Return the model with its constant as the values of a sparse one."""
    sparse = sparse_of(model, "values")
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(sparse)
    return model


def in_sparse_indices(model: Any) -> Any:
    """Return the model with its constant as the indices of a sparse one."""
    sparse = sparse_of(model, "indices")
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(sparse)
    return model


def in_sparse_attribute(model: Any) -> Any:
    """Return the model with its constant as the values of a sparse attribute."""
    node = helper.make_node("Constant", [], ["w"], sparse_value=sparse_of(model, "values"))
    return model_of([node, *model.graph.node])


def as_it_is(model: Any) -> Any:
    """Return the model with its constant in the graph itself."""
    return model


PLACES: tuple[Callable[[Any], Any], ...] = (
    as_it_is,
    in_branch,
    in_function,
    in_function_default,
    in_attribute,
    in_list,
    in_sparse_values,
    in_sparse_indices,
    in_sparse_attribute,
)
"""Each moves the constant of `outside` elsewhere in the file."""
