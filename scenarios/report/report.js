// Draws each figure of the data block into the element that bears its name, and moves the graph
// through time. Everything foreign in the data was escaped for plotly's labels when it was written.
(function () {
  "use strict";
  var figures = JSON.parse(document.getElementById("figures").textContent);
  var quiet = { responsive: true, displaylogo: false, displayModeBar: false };

  Object.keys(figures).forEach(function (name) {
    Plotly.newPlot(name, figures[name].data, figures[name].layout, quiet);
  });
  // On paper (A4, some 700 pixels) the window's width means nothing.
  window.addEventListener("beforeprint", function () {
    Object.keys(figures).forEach(function (name) {
      var box = document.getElementById(name), pair = box.parentNode;
      var alone = pair.className !== "pair" ||
        (box === pair.lastElementChild && pair.children.length % 2 === 1);
      Plotly.relayout(name, { autosize: false, width: alone ? 700 : 345 });
    });
  });
  window.addEventListener("afterprint", function () {
    Object.keys(figures).forEach(function (name) {
      Plotly.relayout(name, { autosize: true, width: null });
    });
  });
  if (figures.graph && figures.graph.timeline) { play(figures.graph.timeline); }

  function play(line) {
    var slider = document.getElementById("graph-time");
    var button = document.getElementById("graph-play");
    var words = document.getElementById("graph-now");
    var hovers = line.kinds.length, nodes = hovers + 1;
    var timer = null;

    // One trace for each way in which a link is used; a gap (null) between two links.
    function links(letters) {
      var x = line.kinds.map(function () { return []; });
      var y = line.kinds.map(function () { return []; });
      line.edges.forEach(function (edge, place) {
        var kind = line.kinds.indexOf(letters[place]);
        if (kind < 0) { return; }
        x[kind].push(line.x[edge[0]], line.x[edge[1]], null);
        y[kind].push(line.y[edge[0]], line.y[edge[1]], null);
      });
      return { x: x, y: y };
    }

    // Few nodes are all named; of many, the five whose models are farthest away.
    function labels(distances) {
      if (line.names.length <= line.named) { return line.names; }
      var order = distances.map(function (_, place) { return place; });
      order.sort(function (a, b) { return (distances[b] || 0) - (distances[a] || 0); });
      var far = {};
      order.slice(0, 5).forEach(function (place) { far[place] = true; });
      return line.names.map(function (name, place) { return far[place] ? name : ""; });
    }

    function show(instant) {
      var distances = line.distance[instant];
      var colour = distances.map(function (value, place) {
        if (line.state[instant][place] === "d" || value === null) { return null; }
        return value > 0 ? Math.log10(value) : line.range[0];
      });
      var symbol = colour.map(function (value, place) {
        var state = line.state[instant][place];
        if (state !== ".") { return state === "d" ? "x-thin" : "diamond-open"; }
        return value === null ? "circle-open" : "circle";
      });
      var said = distances.map(function (value, place) {
        if (line.state[instant][place] === "d") { return "down"; }
        if (line.state[instant][place] === "a") { return "malicious: its model is in no mean"; }
        return value === null ? "not measured" : value + " from the mean of its round";
      });
      Plotly.restyle("graph", links(line.links[instant]), line.kinds.map(function (_, k) { return k; }));
      Plotly.restyle("graph", {
        "marker.color": [colour], "marker.symbol": [symbol],
        customdata: [said], text: [labels(distances)]
      }, [nodes]);
      words.textContent = line.label[instant];
      slider.setAttribute("aria-valuetext", line.label[instant]);
    }

    function stop() {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
    }

    slider.addEventListener("input", function () { stop(); show(Number(slider.value)); });
    button.addEventListener("click", function () {
      if (timer !== null) { stop(); return; }
      if (slider.value === slider.max) { slider.value = 0; }
      button.textContent = "Pause";
      timer = setInterval(function () {
        slider.value = Number(slider.value) + 1;
        show(Number(slider.value));
        if (slider.value === slider.max) { stop(); }
      }, 200);
    });
    show(line.first);
  }
})();
