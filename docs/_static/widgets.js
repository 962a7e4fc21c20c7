// Tells the widget manager where the module `anywidget` is: beside this page, not on a server.
require.config({
  paths: {anywidget: document.documentElement.dataset.content_root + "_static/vendor/anywidget"},
});
