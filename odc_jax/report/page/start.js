startControls();
startLists();
startMap();
startViewer();
setGroups(state.g);
startRoute();
