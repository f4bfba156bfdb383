/** The menus of a page in which readers choose what images are to be of: a class, or for each attribute yes or no. */

/** Fills an element's last child with the menus of a model's condition, all at "any"; hides it if there is none. */
export function offer(element, condition) {
  const { names = [], exclusive = false } = condition ?? {};
  const classes = names.map((name, index) => new Option(name, index));
  const menus = exclusive
    ? [menu("class", classes)]
    : names.map((name) => menu(name, [new Option("yes", "yes"), new Option("no", "no")]));
  element.lastElementChild.replaceChildren(...menus);
  element.hidden = !condition;
}

/** What is chosen, as decoders, generators and priors take it: a number for each name, or null where all is "any". */
export function chosen(element, condition) {
  const values = menusOf(element).map((each) => each.value);
  if (values.every((value) => !value)) return null;
  return Float32Array.from(condition.names, (_, index) => {
    if (condition.exclusive) return values[0] === String(index) ? 1 : 0;
    return { yes: 1, no: -1 }[values[index]] ?? 0;
  });
}

/** The menus, each with a `name`, an attribute's or "class", and a `value`, empty for any. */
export function menusOf(element) {
  return [...element.querySelectorAll("select")];
}

function menu(name, options) {
  const label = document.createElement("label");
  const select = Object.assign(document.createElement("select"), { name });
  select.append(new Option("any", ""), ...options);
  label.append(name.replaceAll("_", " "), select);
  return label;
}
